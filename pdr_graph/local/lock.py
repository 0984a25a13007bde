"""A lock on a file that the kernel drops when its holder dies, however it dies.

`flock(2)` locks belong to the open file, so a process that is killed with SIGKILL leaves none
behind. There is nothing to clean up and no process id to guess at.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from pdr_graph.errors import LocalError


class FileLock:
    """An open lock file; closing it gives up whatever lock it holds."""

    def __init__(self, path: Path) -> None:
        """Open the file, and make it if it is missing; nothing is locked yet.

        Raises:
            LocalError: The file cannot be opened for writing.
        """
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalError(
                f"{path} cannot be written: {error.strerror}; "
                "choose a data directory that can be written to"
            ) from error

    def try_exclusive(self) -> bool:
        """Take the lock for this holder alone; False if anyone else has it."""
        return self._try(fcntl.LOCK_EX)

    def try_shared(self) -> bool:
        """Take the lock beside other shared holders; False if someone has it alone."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        """Give the lock up and keep the file open."""
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def _try(self, kind: int) -> bool:
        try:
            fcntl.flock(self.descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # some network file systems have no locks
            raise LocalError(
                f"{self.path} cannot be locked: {error.strerror}; "
                "choose a data directory on a local disk"
            ) from error
        return True

    def close(self) -> None:
        """Close the file here; a process that it was passed on to keeps the lock."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
