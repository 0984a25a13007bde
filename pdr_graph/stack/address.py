"""Addresses on this machine: which are free, and whose they are."""

import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pdr_graph.errors import LocalError

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def free_port(wanted: int | None, preferred: int) -> int:
    """Choose a port of the loopback interface.

    Args:
        wanted: The one that it must be, None if any will do.
        preferred: The one that it is then, if nobody has it.

    Raises:
        LocalError: `wanted` is taken.
    """
    if wanted is not None:
        if not _can_bind(wanted):
            raise LocalError(f"port {wanted} is taken by another program; choose a free one")
        return wanted
    if _can_bind(preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unanswered_port(url: str, default: int) -> int | None:
    """Return the port of a URL on this machine at which nobody listens; None for all others.

    A URL with a password is that of a server which somebody has set up.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default
    except ValueError:
        return None
    if parts.scheme not in {"http", "redis"} or host not in LOOPBACK or parts.password:
        return None
    try:
        with socket.create_connection((host, port), timeout=5):
            return None
    except ConnectionRefusedError:
        return port
    except OSError:
        return None


def is_socket_of(url: str, folder: Path) -> bool:
    """Tell whether a URL is that of the store whose data a folder keeps."""
    parts = urlsplit(url)
    try:
        return parts.scheme == "unix" and unquote(parts.path) == (folder / "address").read_text()
    except OSError:
        return False


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last owner has just gone is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
