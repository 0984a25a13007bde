"""A run folder as seen by a process that writes to it: header, finished samples, claims.

Several processes may work on one folder. A sample's line is appended whole (`json_lines.py`). A
claim on a sample is a lock on one byte of a file; the system releases it when the process that
holds it ends, however it ends. Both need a file system whose locks hold between the processes; on
one machine, any file system does.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pdr_graph.errors import ConfigError
from pdr_graph.eval.json_lines import append_lines
from pdr_graph.eval.records import (
    HEADER,
    LOCK,
    SAMPLES,
    TRACE,
    HeaderRecord,
    Key,
    SampleRecord,
    key_of,
    parse_samples,
    read_header,
)


class RunFolder:
    """The folder of a run under way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / SAMPLES
        """The file of finished samples."""
        self.finished: dict[Key, SampleRecord] = {}
        """By arm, problem and sample. If a sample has two lines, the later one."""
        self._offset = 0
        self._lines = 0
        self._claims: BinaryIO | None = None

    def open(self, header: HeaderRecord) -> HeaderRecord:
        """Create the folder, or find the run in it; returns the header of the folder.

        If several processes begin at the same time, one of them writes the header.

        Raises:
            ConfigError: the folder cannot be created, or its header is damaged.
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
            # Fails if another process was faster; nobody ever reads half a header.
            os.link(whole, file)
        except FileExistsError:
            pass
        finally:
            whole.unlink()

    def refresh(self) -> list[SampleRecord]:
        """Return the samples that any process has appended since the last call.

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
        """Write a sample's line to the disk; the next `refresh` returns it."""
        append_lines(self.samples, json.dumps(sample, ensure_ascii=True).encode() + b"\n")

    @contextmanager
    def claim(self, position: int) -> Iterator[bool]:
        """Claim the sample at a position for the duration of the block.

        Yields:
            Whether the claim is ours; False if another process has it.
        """
        if self._claims is None:
            # Stays open: closing any descriptor of the file would release every POSIX lock on it.
            self._claims = (self.path / LOCK).open("ab")
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
        """Release every claim."""
        if self._claims is not None:
            self._claims.close()
            self._claims = None
