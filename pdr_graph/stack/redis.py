"""A Redis server's command line: on this machine only, and nothing of a run is lost."""

import os
import shutil
from pathlib import Path
from urllib.parse import quote

from pdr_graph.errors import LocalError
from pdr_graph.local.data_dir import own_folder
from pdr_graph.local.valkey.server import SOCKET_PATH_LIMIT, socket_path
from pdr_graph.stack.plan import Plan

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


def redis_plan(program: str, data_dir: Path, where: int | str, timeout_s: float) -> Plan:
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
    return Plan(part="store", kind="redis", url=url, command=(program, *words), timeout_s=timeout_s)
