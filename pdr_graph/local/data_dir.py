"""The folder in which the embedded parts keep what they own: weights, the store, logs."""

import logging
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_data_path

from pdr_graph.errors import LocalError

logger = logging.getLogger(__name__)

Announce = Callable[[str], None]
"""Takes one line for the user to read."""

LOG_LIMIT = 4 * 2**20
"""Size in bytes above which a log is set aside when its server starts."""


def default_data_dir() -> Path:
    """Return the user's data directory for this package, which need not exist yet."""
    return user_data_path("pdr-graph", appauthor=False)


def own_folder(path: Path) -> Path:
    """Make `path` and its parents if they are missing, readable by their owner alone.

    Returns:
        `path`, absolute.

    Raises:
        LocalError: The folder cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise LocalError(
            f"the data directory {path} cannot be made: {error.strerror}; "
            "choose another one that can be written to"
        ) from error
    return path.resolve()


def fresh_log(path: Path) -> Path:
    """Set a log aside that has grown beyond `LOG_LIMIT`, keeping one earlier log.

    Returns:
        `path`.
    """
    try:
        if path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name(path.name + ".1"))
    except FileNotFoundError:
        pass
    return path


def last_line(log: Path) -> str:
    """Return the last line that says something in a log, "" where there is none."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").splitlines()
    except OSError as error:
        logger.debug("log.unreadable path=%s error=%s", log, error)
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
