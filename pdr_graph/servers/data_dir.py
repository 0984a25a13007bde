"""The folder in which the embedded parts keep what they own: weights, the store, logs, locks.

A lock is flock(2)'s, which belongs to the open file: the kernel drops it when the last process
that has the file open is gone, however it ended. Nothing has to be cleaned up.
"""

import fcntl
import logging
import os
import re
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from platformdirs import user_data_path

from pdr_graph.errors import LocalError, keep_secret

logger = logging.getLogger(__name__)

Announce = Callable[[str], None]
"""Takes one line for the user to read."""

OWN_FOLDERS = frozenset({"stack", "valkey", "redis", "weights"})
"""Names of the folders that we make in the data directory."""
LOG_LIMIT = 4 * 2**20
"""Size in bytes above which a log is set aside when its server starts."""
READ_BACK = 2**17
"""Bytes at the end of a log in which its last lines are looked for."""


def default_data_dir() -> Path:
    """Return the user's data directory for this package, which need not exist yet."""
    return user_data_path("pdr-graph", appauthor=False)


def own_folder(path: Path) -> Path:
    """Make a folder and its missing parents, for their owner alone; return its absolute path.

    Raises:
        LocalError: The folder cannot be made.
    """
    try:
        # One by one: `parents=True` makes the parents readable by others.
        for parent in reversed(path.absolute().parents):
            if not parent.exists():
                parent.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        _close(path)
    except OSError as error:
        raise LocalError(
            f"the data directory {str(path)!r} cannot be made: {error.strerror}; "
            "choose another by --data-dir / PDR_DATA_DIR"
        ) from error
    return path.resolve()


def _close(path: Path) -> None:
    """Take other users' access from a folder that an older version, or somebody else, has made."""
    found = path.stat()
    if not found.st_mode & 0o077 or found.st_uid != os.geteuid():
        return
    if path.name in OWN_FOLDERS or path.absolute() == default_data_dir():
        path.chmod(0o700)
    else:
        # A folder that the user names may hold more than ours.
        logger.warning(
            "other users of this machine can look into the data directory %s; chmod 700 it", path
        )


def own_secret(file: Path, text: str, read: Callable[[Path], str]) -> str:
    """Return the secret in a file that only its owner can read; write `text` if there is no file.

    A file that others could read is replaced.

    Args:
        file: Where it is.
        text: What a new file holds.
        read: Finds the secret in the file, "" if there is none.

    Raises:
        LocalError: The folder or the file cannot be made.
    """
    own_folder(file.parent)
    try:
        if file.exists():
            if read(file) and not file.stat().st_mode & 0o077:
                return read(file)
            file.unlink()
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text)
        with suppress(FileExistsError):  # another process was faster, and has told its own
            os.link(partial, file)
        partial.unlink()
    except OSError as error:
        raise LocalError(
            f"{str(file)!r} cannot be written: {error.strerror}; choose a data directory that can "
            "be written to"
        ) from error
    return read(file)


def key_file(data_dir: Path) -> Path:
    """Return the file with the key of the model servers that are started here."""
    return data_dir / "stack" / "model.key"


def noted_key(file: Path) -> str:
    """Return the key in a file, "" if there is none."""
    try:
        found = _KEY.fullmatch(file.read_text("utf-8"))
    except (OSError, ValueError):
        return ""
    return found[1] if found else ""


def own_key(data_dir: Path) -> str:
    """Return the key of the model servers that are started here, made if there is none.

    Raises:
        LocalError: It cannot be written.
    """
    key = own_secret(key_file(data_dir), f"{secrets.token_urlsafe(32)}\n", noted_key)
    keep_secret(key)
    return key


_KEY = re.compile(r"([\w-]{20,})\n", re.ASCII)


def fresh_log(path: Path) -> Path:
    """Set aside a log above `LOG_LIMIT` bytes, in place of an earlier one; return `path`."""
    with suppress(FileNotFoundError):  # another process may be doing the same
        if path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name(path.name + ".1"))
    return path


def last_lines(log: Path, number: int = 1, begin: int = 0) -> list[str]:
    """Return the last lines of a log that are not empty; none if it cannot be read.

    They are `number` at most, and begin at byte `begin` or later.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin, size - READ_BACK))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()][-number:]


class FileLock(AbstractContextManager["FileLock"]):
    """A lock file that is open, and may hold its lock, for as long as the block lasts."""

    def __init__(self, path: Path) -> None:
        """Open the file, made if it is missing; nothing is locked yet.

        Raises:
            LocalError: The file cannot be opened for writing.
        """
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalError(
                f"{str(path)!r} cannot be written: {error.strerror}; "
                "choose another data directory by --data-dir / PDR_DATA_DIR"
            ) from error

    def try_exclusive(self) -> bool:
        """Take the lock for this holder alone; False if anybody else holds it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take the lock beside other shared holders; False if somebody holds it alone."""
        return self._try(fcntl.LOCK_SH)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some network file systems have no locks
            raise LocalError(
                f"{str(self.path)!r} cannot be locked: {error.strerror}; "
                "choose a data directory on a local disk"
            ) from error
        return True

    def __exit__(self, *_: object) -> None:
        # A process that has inherited the file keeps the lock.
        os.close(self.descriptor)
