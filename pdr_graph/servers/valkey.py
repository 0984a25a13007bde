"""How a Redis or Valkey is started: on this machine only, and so that nothing of a run is lost."""

import hashlib
import os
import re
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from urllib.parse import quote

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import own_folder, own_secret
from pdr_graph.servers.record import Kind, ServerPlan

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
