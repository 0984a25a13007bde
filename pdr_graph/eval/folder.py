"""A run folder as the process sees it that writes there: header, finished samples, claims.

Several processes may work on one folder. A line is appended whole, under a lock on the file; what
is left of a line whose writer died is cut off first. Claims are locks on single bytes of a file,
one byte a sample, which the system gives up with the process that held them, however it ended.
Both need a file system whose locks hold between the processes; on one machine any does.

Lines appended whole to a file which several processes write, and in which any may die.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import (
    HEADER,
    SAMPLES,
    HeaderRecord,
    Key,
    SampleRecord,
    key_of,
    parse_samples,
    read_header,
)


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


LOCK, TRACE = "run.lock", "trace"


class RunFolder:
    """A run that goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.finished: dict[Key, SampleRecord] = {}
        """By arm, problem and sample; where there are two lines, the later."""
        self._offset = 0
        self._lines = 0
        self._claims: int | None = None

    @property
    def samples(self) -> Path:
        """The file of finished samples."""
        return self.path / SAMPLES

    def open(self, header: HeaderRecord) -> HeaderRecord:
        """Make the folder, or find the run in it; returns the header that holds.

        Of processes that begin at the same time, one writes the header.

        Raises:
            ConfigError: the folder cannot be made, or something else is in it.
        """
        try:
            (self.path / TRACE).mkdir(parents=True, exist_ok=True)
            self._write_header(header)
        except OSError as error:
            raise ConfigError(
                f"--out {str(self.path)!r} cannot be made: {error.strerror}"
            ) from None
        return read_header(self.path)

    def _write_header(self, header: HeaderRecord) -> None:
        file = self.path / HEADER
        if file.exists():
            return
        whole = self.path / f".{HEADER}.{os.getpid()}"
        whole.write_text(json.dumps(header, indent=2) + "\n", "utf-8")
        try:
            os.link(whole, file)  # fails where another was faster, and is never seen in part
        except FileExistsError:
            pass
        finally:
            whole.unlink()

    def refresh(self) -> list[SampleRecord]:
        """Read what was appended since the last time, by whichever process; returns it.

        Raises:
            ConfigError: a line is damaged.
        """
        try:
            with self.samples.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        new = list(parse_samples(data, self.samples, first_line=self._lines + 1))
        self._offset += len(data)
        self._lines += len(new)
        self.finished.update((key_of(sample), sample) for sample in new)
        return new

    def append(self, sample: SampleRecord) -> None:
        """Write a sample's line, to the disk; `refresh` will read it."""
        append_lines(self.samples, json.dumps(sample, ensure_ascii=True).encode() + b"\n")

    @contextmanager
    def claim(self, position: int) -> Iterator[bool]:
        """Hold the right to work on a sample for as long as the block runs.

        Yields whether it is ours: False says that another process has it.
        """
        if self._claims is None:
            # Kept open: a POSIX lock goes with the first descriptor of the file that is closed.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._claims = os.open(self.path / LOCK, flags, 0o666)
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, position)

    def close(self) -> None:
        """Give up every claim."""
        if self._claims is not None:
            os.close(self._claims)
            self._claims = None
