"""The Valkey process: its options, its start, its end.

A Redis server's command line: on this machine only, and nothing of a run is lost.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import FileLock, own_folder
from pdr_graph.servers.process import ServerPlan

SOCKET_PATH_LIMIT = 103
"""Bytes that a Unix socket's path may have: 103 on macOS, 107 on Linux."""

STOP_TIMEOUT_S = 30.0
POLL_S = 0.005


def ask(address: str, *words: str) -> str:
    """Send one command to a server's socket and return its first line, "" if none comes."""
    request = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(address)
            connection.sendall(request.encode())
            return connection.recv(256).decode(errors="replace").partition("\r\n")[0]
    except OSError:
        return ""


class ValkeyServer:
    """The one Valkey on the files in `home`, whoever started it."""

    def __init__(self, binary: Path, home: Path) -> None:
        self.binary = binary
        self.home = home
        self.log = home / "valkey.log"
        self.address = ""
        """Path of its socket; "" until it is found or started."""
        self.process: subprocess.Popen[bytes] | None = None
        """None if it was found alive."""

    def is_alive(self) -> bool:
        """Tell whether there is a process, answering or not."""
        if self.process is not None:
            return self.process.poll() is None
        with FileLock(self.home / "server.lock") as lock:
            return not lock.try_exclusive()

    def find_or_start(self, timeout_s: float) -> None:
        """Take over a server that lost its supervisor, else start one; it answers afterwards.

        Raises:
            LocalError: It does not start, or is alive and does not answer.
        """
        if not self.is_alive():
            return self.start(timeout_s)
        with contextlib.suppress(OSError):
            self.address = (self.home / "address").read_text()
        if not self._answers(timeout_s):
            raise LocalError(
                f"a valkey-server holds {self.home} and does not answer; end it and try again"
            )
        return None

    def start(self, timeout_s: float) -> None:
        """Start the server and wait until it answers.

        Raises:
            LocalError: It does not start.
        """
        log_size = self.log.stat().st_size if self.log.exists() else 0
        try:
            self.address = socket_path(self.home)
            (self.home / "address").write_text(self.address)
            self.process = self._spawn()
        except OSError as error:
            raise LocalError(
                f"the embedded Valkey cannot be started in {self.home}: {error.strerror or error}"
            ) from error
        if self._answers(timeout_s):
            return
        reason = self._last_words(log_size) or f"no answer within {timeout_s:g} s"
        self.stop()
        raise LocalError(f"the embedded Valkey did not start: {reason}; its log is {self.log}")

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with FileLock(self.home / "server.lock") as lock, self.log.open("ab") as log:
            if not lock.try_exclusive():
                raise LocalError(f"another valkey-server holds {self.home}")
            # Leaving this block closes the lock file here. The server has it open from now on,
            # and so the lock lives exactly as long as the server does.
            return subprocess.Popen(
                [str(self.binary), *_options(self.address)],
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock.descriptor],
            )

    def _answers(self, timeout_s: float) -> bool:
        """Wait until it answers; while it replays its log it is alive and refuses."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive() and time.monotonic() < deadline:
            if ask(self.address, "PING") == "+PONG":
                return True
            time.sleep(POLL_S)
        return False

    def _last_words(self, offset: int) -> str:
        """Return what a server that has ended said last, "" if it is alive."""
        if self.is_alive():
            return ""
        with self.log.open("rb") as log:
            log.seek(offset)
            lines = log.read().decode(errors="replace").splitlines()
        # "1234:M 01 Jan 2026 00:00:00.000 # Fatal error …": # marks what is grave.
        said = [line.rpartition(" # ")[2].strip() for line in lines if line.strip()]
        return said[-1] if said else "it ended without a word"

    def stop(self) -> None:
        """End the server, its files written, by force if it takes too long; once is enough."""
        address, self.address = self.address, ""
        if self.process is None:
            # Never a second time: by then the address may be that of somebody else's server.
            if address:
                ask(address, "SHUTDOWN", "NOW", "FORCE")
                deadline = time.monotonic() + STOP_TIMEOUT_S
                while self.is_alive() and time.monotonic() < deadline:
                    time.sleep(POLL_S)
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _options(address: str) -> list[str]:
    options = {
        "port": "0",  # the socket only: nobody else on this machine, let alone on the network
        "unixsocket": address,
        "unixsocketperm": "700",
        "protected-mode": "yes",
        "dir": ".",
        "logfile": "valkey.log",
        # A run must survive: every write is in the log a second later, and nothing is evicted.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def socket_path(home: Path) -> str:
    """Choose where the server's socket is: in its folder, or in the temporary one if need be.

    The folder's own path may be too long for a socket, and some file systems have no sockets.

    Raises:
        OSError: Neither place will do.
    """
    preferred = str(home / "valkey.sock")
    if _can_bind(preferred):
        return preferred
    folder = Path(tempfile.gettempdir()) / f"pdr-graph-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        # Anyone may make a folder of this name there, and would own the socket in it.
        raise PermissionError(f"{folder} belongs to someone else, or is open to others")
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return str(folder / f"{name}.sock")


def _can_bind(path: str) -> bool:
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        return False
    Path(path).unlink(missing_ok=True)  # left behind by a server that was killed
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
    except OSError:
        return False
    Path(path).unlink()
    return True


PROGRAMS = ("redis-server", "valkey-server")


def find_redis() -> str | None:
    """Find a server on the path."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def folder(data_dir: Path) -> Path:
    """Return where its data are."""
    return data_dir / "redis"


def socket_of(data_dir: Path) -> str:
    """Return where the socket of a server is to be; the server itself clears the place.

    Raises:
        LocalError: the folder's path is too long for a socket, and no other place will do.
    """
    preferred = str((folder(data_dir) / "redis.sock").absolute())
    if len(os.fsencode(preferred)) <= SOCKET_PATH_LIMIT:
        return preferred
    try:
        return socket_path(folder(data_dir).absolute())
    except OSError as error:
        raise LocalError(
            f"no socket can be made for {preferred}: {error.strerror or error}; choose a port by "
            "--redis-port"
        ) from error


def prepare(data_dir: Path, address: str) -> None:
    """Make the folder of a server that is about to start, which names its socket.

    Raises:
        LocalError: the folder cannot be made.
    """
    (own_folder(folder(data_dir)) / "address").write_text(address)


def redis_plan(program: str, data_dir: Path, where: int | str, timeout_s: float) -> ServerPlan:
    """Return the plan of a server.

    Args:
        program: The server's.
        data_dir: Keeps what it stores, in `redis/`.
        where: A port of the loopback interface, or the path of a Unix socket, which others on
            this machine cannot open.
        timeout_s: For reading what it stored before.
    """
    options = {
        "dir": str(folder(data_dir).absolute()),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "aof-load-truncated": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    if isinstance(where, str):
        options |= {"port": "0", "unixsocket": where, "unixsocketperm": "700"}
        url = f"unix://{quote(where)}"
    else:
        options |= {"port": str(where), "bind": "127.0.0.1", "protected-mode": "yes"}
        url = f"redis://127.0.0.1:{where}"
    words = [part for name, value in options.items() for part in (f"--{name}", value)]
    return ServerPlan(
        part="store", kind="redis", url=url, command=(program, *words), timeout_s=timeout_s
    )
