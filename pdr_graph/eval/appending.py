"""Lines appended whole to a file which several processes write, and in which any may die."""

import fcntl
import os
from pathlib import Path


def append_lines(file: Path, lines: bytes) -> None:
    """Write whole lines at the end of a file, to the disk, under a lock on it.

    What is left of a line whose writer died is cut off first.

    Args:
        file: Made if it is not there.
        lines: Each ends with a newline.

    Raises:
        OSError: the file cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    opened = os.open(file, flags, 0o666)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        _cut_torn_line(opened)
        while lines:
            lines = lines[os.write(opened, lines) :]
        os.fsync(opened)
    finally:
        os.close(opened)


def _cut_torn_line(file: int) -> None:
    """Remove what a writer left that died in the middle of its line."""
    end = os.fstat(file).st_size
    if not end or os.pread(file, 1, end - 1) == b"\n":
        return
    while end:
        start = max(0, end - 65_536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(file, start + newline + 1)
            return
        end = start
    os.ftruncate(file, 0)
