r"""A checkpoint, a channel's value and a pending write as stored bytes.

    record  [checkpoint body, metadata body, parent id or None, [channels that have a value]]
    cell    see `pdr_checkpoints.records`
    writes  [ns since 1970, task path, [[index, channel, cell], …]]: what a task wrote at once

Each is msgpack in an envelope. The record lists the channels that have a value, so that one whose
blob is gone is an error and not, silently, an empty channel.

How one value is laid out: small ones in place, large ones as parts named by their content.

A draft reaches the saver twice: as the pending write of the task that made it, and one super-step
later inside the channel that collects all drafts. Both hold the same bytes, so both store only
the part's digest, and the part once. A list is laid out item by item, which is what lets a
channel of 16 drafts share bytes with 16 pending writes, and a growing list of messages with its
earlier versions.

    cell = [0, body]        the value itself: "<serde type>\0<serde bytes>"
         | [1, digest]      a part
         | [2, [cell, …]]   a list, item by item

Measured (3 rounds × 16 drafts × 32 kB, drafts cleared every round): see `checkpoints/README.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ormsgpack
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import Envelope, describe
from pdr_checkpoints.errors import (
    CorruptCheckpointError,
    FormatVersionError,
    UnknownSerializationError,
)

# A cell is msgpack: int, bytes and lists, nested. Python has no recursive alias that mypy
# checks without more noise than it is worth here.
Cell = list[Any]
Parts = dict[bytes, bytes]
"""Bodies by digest."""

PART_FROM: Final = 1024
"""Smaller values stay in their cell: a part costs about 100 bytes of names and hash entry."""
SHORT_LIST: Final = 64
"""A list of up to this many items is laid out item by item, whatever they are."""
ITEM_MEAN_FROM: Final = 256
"""A longer list of shorter items is serialised whole: names would outweigh what they save."""

INLINE: Final = 0
REFERENCE: Final = 1
ITEMS: Final = 2


def lay_out(
    value: object, serde: SerializerProtocol, digest: Callable[[bytes], bytes]
) -> tuple[Cell, Parts]:
    """Turn a value into a cell and the parts it refers to, named by their digests."""
    parts: Parts = {}
    # Exactly a list: a subclass would come back as a plain one.
    if type(value) is not list:
        return _place(dump(value, serde), parts, digest), parts
    if len(value) > SHORT_LIST:
        whole = dump(value, serde)
        if len(whole) < max(PART_FROM, ITEM_MEAN_FROM * len(value)):
            return _place(whole, parts, digest), parts
    return [ITEMS, [_place(dump(item, serde), parts, digest) for item in value]], parts


def references(cell: Cell) -> Iterator[bytes]:
    """Yield the digests that a cell refers to."""
    if cell[0] == REFERENCE:
        yield cell[1]
    elif cell[0] == ITEMS:
        for item in cell[1]:
            yield from references(item)


def assemble(
    cell: Cell,
    parts: Mapping[bytes, bytes],
    serde: SerializerProtocol,
    what: str = "a channel value",
) -> object:
    """Undo `lay_out`; the parts must hold every digest that `references` yields.

    Raises:
        CorruptCheckpointError: `what` is laid out or serialised in an unknown way.
    """
    if cell[0] == INLINE:
        return load(cell[1], serde, what)
    if cell[0] == REFERENCE:
        return load(parts[cell[1]], serde, what)
    if cell[0] == ITEMS:
        return [assemble(item, parts, serde, what) for item in cell[1]]
    raise CorruptCheckpointError(what, f"its layout {cell[0]!r} is unknown")


def dump(value: object, serde: SerializerProtocol) -> bytes:
    """Serialise a value, its serde type first."""
    kind, data = serde.dumps_typed(value)
    return kind.encode() + b"\0" + bytes(data)


def load(body: bytes, serde: SerializerProtocol, what: str = "a stored value") -> object:
    """Undo `dump`.

    Raises:
        UnknownSerializationError: `what` has a serde type that the serializer does not know.
    """
    kind, _, data = body.partition(b"\0")
    name = kind.decode("utf-8", "backslashreplace")
    try:
        value: object = serde.loads_typed((name, data))
    # What LangGraph's serializers raise for a type that is not theirs.
    except NotImplementedError as error:
        raise UnknownSerializationError(what, name, type(serde).__name__) from error
    return value


def _place(body: bytes, parts: Parts, digest: Callable[[bytes], bytes]) -> Cell:
    if len(body) < PART_FROM:
        return [INLINE, body]
    name = digest(body)
    parts[name] = body
    return [REFERENCE, name]


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
class CheckpointRecord:
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


def pack_record(record: CheckpointRecord, envelope: Envelope, field: bytes) -> bytes:
    """Make the blob of a record."""
    body = [record.checkpoint, record.metadata, record.parent_id, list(record.channels)]
    return envelope.wrap(ormsgpack.packb(body), field)


def unpack_record(blob: bytes, envelope: Envelope, field: bytes) -> CheckpointRecord:
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
    return CheckpointRecord(checkpoint, metadata, parent_id, channels)


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
