"""A checkpoint, a channel's value and a pending write as stored bytes.

    record  [checkpoint body, metadata body, parent id or None, [channels that have a value]]
    cell    see `checkpoints.values`
    writes  [ns since 1970, task path, [[index, channel, cell], …]]: what a task wrote at once

Each is msgpack in an envelope. The record lists the channels that have a value, so that one whose
blob is gone is an error and not, silently, an empty channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import ormsgpack

from checkpoints import keys
from checkpoints.envelope import Envelope, describe
from checkpoints.errors import CorruptCheckpointError, FormatVersionError
from checkpoints.values import Cell

FORMAT_VERSION: Final = 1
"""Version of the layout of a thread, in its head field; see the package's docstring."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which checkpoint of which thread."""

    thread_id: str
    ns: str
    checkpoint_id: str

    @property
    def described(self) -> str:
        """The checkpoint in a message."""
        inside = f" in namespace {self.ns!r}" if self.ns else ""
        return f"checkpoint {self.checkpoint_id!r}{inside} of thread {self.thread_id!r}"

    @property
    def record(self) -> bytes:
        """The field and index member of the checkpoint."""
        return keys.join(keys.RECORD, self.ns, self.checkpoint_id)

    def cell(self, channel: str, version: object) -> bytes:
        """The field of a channel's value at a version."""
        return keys.join(keys.CELL, self.ns, channel, str(version))

    def writes(self, task_id: str, number: int) -> bytes:
        """The field and index member of pending writes.

        The number is how many there are, so that the same call made again finds its field taken;
        or the negative index of a special write, which has a field of its own.
        """
        return keys.join(keys.WRITE, self.ns, self.checkpoint_id, task_id, str(number))


@dataclass(frozen=True, slots=True)
class Record:
    """A checkpoint without its values."""

    checkpoint: bytes
    metadata: bytes
    parent_id: str | None
    channels: Sequence[str]
    """Channels that had a value when the checkpoint was made."""


@dataclass(frozen=True, slots=True)
class Writes:
    """What one task wrote in one call."""

    time_ns: int
    """Of two calls that wrote one index, the earlier stands."""
    task_path: str
    cells: Sequence[tuple[int, str, Cell]]
    """Index, channel and value of each write."""


def pack_record(record: Record, envelope: Envelope, field: bytes) -> bytes:
    """Make the blob of a record."""
    body = [record.checkpoint, record.metadata, record.parent_id, list(record.channels)]
    return envelope.wrap(ormsgpack.packb(body), field)


def unpack_record(blob: bytes, envelope: Envelope, field: bytes) -> Record:
    """Undo `pack_record`."""
    checkpoint, metadata, parent_id, channels = _unpack(blob, envelope, field, 4)
    if not (
        isinstance(checkpoint, bytes)
        and isinstance(metadata, bytes)
        and isinstance(parent_id, str | None)
        and isinstance(channels, list)
        and all(isinstance(name, str) for name in channels)
    ):
        raise CorruptCheckpointError(describe(field), "it has an unknown shape")
    return Record(checkpoint, metadata, parent_id, channels)


def pack_cell(cell: Cell, envelope: Envelope, field: bytes) -> bytes:
    """Make the blob of a channel's value."""
    return envelope.wrap(ormsgpack.packb(cell), field)


def unpack_cell(blob: bytes, envelope: Envelope, field: bytes) -> Cell:
    """Undo `pack_cell`."""
    return _unpack(blob, envelope, field, 2)


def pack_writes(writes: Writes, envelope: Envelope, field: bytes) -> bytes:
    """Make the blob of pending writes."""
    body = [writes.time_ns, writes.task_path, writes.cells]
    return envelope.wrap(ormsgpack.packb(body), field)


def unpack_writes(blob: bytes, envelope: Envelope, field: bytes) -> Writes:
    """Undo `pack_writes`."""
    time_ns, task_path, cells = _unpack(blob, envelope, field, 3)
    if not (
        isinstance(time_ns, int)
        and isinstance(task_path, str)
        and isinstance(cells, list)
        and all(isinstance(cell, list) and len(cell) == 3 for cell in cells)
    ):
        raise CorruptCheckpointError(describe(field), "it has an unknown shape")
    return Writes(time_ns, task_path, [tuple(cell) for cell in cells])


def pack_head(created_ms: int) -> bytes:
    """Make the head of a thread."""
    return b"%d %d" % (FORMAT_VERSION, created_ms)


def check_head(head: bytes | None, thread_id: str) -> int:
    """Give the time of creation in ms, 0 when a thread has pending writes only.

    Raises:
        FormatVersionError: A release with another layout wrote the thread.
    """
    if head is None:
        return 0
    try:
        version, created_ms = map(int, head.split())
    except ValueError as error:
        raise CorruptCheckpointError(f"thread {thread_id!r}", f"its head is {head!r}") from error
    if version != FORMAT_VERSION:
        raise FormatVersionError(f"thread {thread_id!r}", version, FORMAT_VERSION)
    return created_ms


# list[Any]: msgpack of mixed content, checked by length and taken apart by the callers.
def _unpack(blob: bytes, envelope: Envelope, field: bytes, length: int) -> list[Any]:
    packed = envelope.unwrap(blob, field)
    try:
        body = ormsgpack.unpackb(packed)
    except ormsgpack.MsgpackDecodeError as error:
        raise CorruptCheckpointError(describe(field), f"it is not msgpack: {error}") from error
    if not isinstance(body, list) or len(body) != length:
        raise CorruptCheckpointError(describe(field), "it has an unknown shape")
    return body
