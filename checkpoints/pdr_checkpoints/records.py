"""Turns checkpoints, values and pending writes into the stored forms of the package's docstring.

A large value becomes a part, named by its content. A draft reaches the saver twice: as the pending
write of its task, and one super-step later in the channel that collects all drafts. Both times it
has the same bytes, so it is stored and hashed once.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Self

from langgraph.checkpoint.base import writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import DIGEST_BYTES, ThreadEnvelope, unknown_shape
from pdr_checkpoints.errors import (
    SHOWN,
    CorruptCheckpointError,
    FormatVersionError,
    TypeNotAllowedError,
    UnknownSerializationError,
)
from pdr_checkpoints.serde import Allowance

# list[Any]: int, bytes and lists, nested. Python has no recursive alias that mypy checks without
# more noise than it is worth here.
Cell = list[Any]
"""A channel's value as it is stored; a large one is a reference to a part."""
Parts = dict[bytes, bytes]
"""Bodies by digest."""
OrderedWrites = list[tuple[tuple[str, str, int], str, Cell]]
"""Sort key (task path, task id, index), channel and value of each write, in order."""

FORMAT_VERSION: Final = 1
"""Version of the layout of a thread, in its head field."""
PART_FROM: Final = 1024
"""Bytes. Smaller values stay in their cell: a part costs about 100 bytes of names."""
SHORT_LIST: Final = 64
"""A list of up to this many items is laid out item by item, whatever they are."""
ITEM_MEAN_FROM: Final = 256
"""Bytes. A longer list of shorter items is serialised whole: parts would only cost space."""
INLINE: Final = 0
REFERENCE: Final = 1
ITEMS: Final = 2
BARE: Final = {"id": str, "ts": str, "channel_versions": dict, "versions_seen": dict}
"""What every checkpoint has, and of which type."""
REMEMBERED_BYTES: Final = 8_000_000
"""Total bytes of the bodies whose digest is remembered: 250 drafts of 32 kB."""
SAMPLE: Final = 64
"""Bytes at each end of a body by which it is found again."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which checkpoint of which thread."""

    thread_id: str
    ns: str
    checkpoint_id: str

    @classmethod
    def of(cls, thread_id: str, member: bytes) -> Self:
        """Read the name of a record.

        Raises:
            CorruptCheckpointError: It is none.
        """
        try:
            ns, checkpoint_id = keys.split(member)
        except ValueError as error:
            raise CorruptCheckpointError(
                f"thread {thread_id!r}",
                f"its index names {member[:SHOWN]!r}, which is no checkpoint",
            ) from error
        return cls(thread_id, ns, checkpoint_id)

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
        """Return the field of a channel's value at a version."""
        return keys.join(keys.CELL, self.ns, channel, str(version))

    def writes(self, task_id: str, number: int) -> bytes:
        """Return the field and index member of pending writes.

        The number counts the writes, so that a repeated call finds its field taken. A special write
        (an error, an interrupt) has a field of its own: its index is negative.
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

    def pack(self, envelope: ThreadEnvelope, field: bytes) -> bytes:
        """Make the blob."""
        body = [self.checkpoint, self.metadata, self.parent_id, list(self.channels)]
        return envelope.pack(body, field)

    @classmethod
    def unpack(
        cls, blob: bytes, envelope: ThreadEnvelope, field: bytes, allowance: Allowance | None = None
    ) -> Self:
        """Undo `pack`."""
        content = envelope.unpack(blob, field, allowance)
        if _is_made_of(content, bytes, bytes, (str, type(None)), list) and all(
            isinstance(name, str) for name in content[3]
        ):
            return cls(*content)
        raise unknown_shape(field)

    def bare(self, serde: SerializerProtocol, place: Place, allowance: Allowance) -> dict[str, Any]:
        """Read the checkpoint without its values: LangGraph's TypedDict less one key.

        Raises:
            CorruptCheckpointError: It cannot be read, or is no checkpoint.
        """
        found = load(self.checkpoint, serde, place.described, allowance)
        if not isinstance(found, dict) or not all(
            isinstance(found.get(key), kind) for key, kind in BARE.items()
        ):
            raise CorruptCheckpointError(place.described, "it is no checkpoint of LangGraph")
        if unknown := [name for name in self.channels if name not in found["channel_versions"]]:
            raise CorruptCheckpointError(place.described, f"channel {unknown[0]!r} has no version")
        return found

    def facts(
        self, serde: SerializerProtocol, place: Place, allowance: Allowance
    ) -> dict[str, Any]:
        """Read the metadata.

        Raises:
            CorruptCheckpointError: They cannot be read, or are no mapping.
        """
        what = f"metadata of {place.described}"
        found = load(self.metadata, serde, what, allowance)
        if not isinstance(found, dict):
            raise CorruptCheckpointError(what, f"it is of type {type(found).__name__}")
        return found


@dataclass(frozen=True, slots=True)
class Writes:
    """What one task wrote in one call."""

    time_ns: int
    """Time of the call: if two calls wrote one index, the earlier one counts."""
    task_path: str
    cells: Sequence[Sequence[Any]]  # Any: int, str and Cell
    """Index, channel and value of each write."""

    def pack(self, envelope: ThreadEnvelope, field: bytes) -> bytes:
        """Make the blob."""
        return envelope.pack([self.time_ns, self.task_path, self.cells], field)

    @classmethod
    def unpack(
        cls,
        blob: bytes | None,
        envelope: ThreadEnvelope,
        field: bytes,
        allowance: Allowance | None = None,
    ) -> Self:
        """Undo `pack`."""
        content = envelope.unpack(blob, field, allowance)
        if _is_made_of(content, int, str, list) and all(
            isinstance(write, list) and _is_made_of(write, int, str, list) and _is_cell(write[2])
            for write in content[2]
        ):
            return cls(*content)
        raise unknown_shape(field)


def _is_made_of(content: Sequence[object], *kinds: type | tuple[type, ...]) -> bool:
    # A long history has hundreds of blobs, and a match statement takes five times as long.
    return len(content) == len(kinds) and all(map(isinstance, content, kinds))


def _is_cell(cell: Cell) -> bool:
    if len(cell) == 2 and cell[0] == ITEMS:
        return isinstance(cell[1], list) and all(map(_is_plain_cell, cell[1]))
    return _is_plain_cell(cell)


def _is_plain_cell(cell: object) -> bool:
    # An item of a list; it holds no further lists.
    return (
        isinstance(cell, list)
        and len(cell) == 2
        and isinstance(cell[1], bytes)
        and (cell[0] == INLINE or (cell[0] == REFERENCE and len(cell[1]) == DIGEST_BYTES))
    )


def ordered_writes(
    blobs: Mapping[bytes, bytes | None], envelope: ThreadEnvelope, allowance: Allowance
) -> OrderedWrites:
    """Unpack the pending writes of one checkpoint, given by field."""
    calls = []
    for field, blob in blobs.items():
        writes = Writes.unpack(blob, envelope, field, allowance)
        try:
            calls.append((writes.time_ns, keys.name_at(field, 2), writes))
        except IndexError as error:
            raise unknown_shape(field) from error
    calls.sort(key=itemgetter(0, 1))
    found: dict[tuple[str, int], tuple[tuple[str, str, int], str, Cell]] = {}
    for _, task_id, writes in calls:
        for index, channel, cell in writes.cells:
            if (task_id, index) not in found:
                key = writes_sort_key(writes.task_path, task_id, index)
                found[task_id, index] = key, channel, cell
    return sorted(found.values(), key=itemgetter(0))


def unpack_cell(
    blob: bytes | None,
    envelope: ThreadEnvelope,
    field: bytes,
    allowance: Allowance | None = None,
) -> Cell:
    """Read a channel's value, which `Envelope.pack` packed."""
    cell = envelope.unpack(blob, field, allowance)
    if not _is_cell(cell):
        raise unknown_shape(field)
    return cell


def pack_head(created_ms: int) -> bytes:
    """Make the head of a thread."""
    return b"%d %d" % (FORMAT_VERSION, created_ms)


def check_head(head: bytes | None, thread_id: str) -> int:
    """Return the time of creation in ms; 0 when a thread has pending writes only.

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


def dump(value: object, serde: SerializerProtocol) -> bytes:
    """Serialise a value, its serde type first."""
    kind, data = serde.dumps_typed(value)
    return kind.encode() + b"\0" + bytes(data)


def load(
    body: bytes, serde: SerializerProtocol, what: str, allowance: Allowance
) -> Any:  # Any: what was dumped
    """Undo `dump`; `what` names the value in a message.

    Raises:
        TooLargeError: The allowance has no room for it.
        UnknownSerializationError: The serializer does not know the serde type.
        TypeNotAllowedError: It names a type that the serializer may not build.
        CorruptCheckpointError: It is cut or altered.
    """
    kind, _, data = body.partition(b"\0")
    name = kind[:SHOWN].decode("utf-8", "backslashreplace")
    if not allowance.surely_takes(body):
        allowance.take_value(data, what, name)
    try:
        return serde.loads_typed((name, data))
    # LangGraph's serializers raise it for a type that is not theirs.
    except NotImplementedError as error:
        raise UnknownSerializationError(what, name, type(serde).__name__) from error
    except TypeNotAllowedError as error:
        raise TypeNotAllowedError(what, error.module, error.name) from None
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(what, f"it does not read as {name!r}: {error}") from error


def lay_out(
    value: object, serde: SerializerProtocol, digest: Callable[[bytes], bytes]
) -> tuple[Cell, Parts]:
    """Turn a value into a cell and the parts that it refers to."""
    parts: Parts = {}

    def cell_of(body: bytes) -> Cell:
        if len(body) < PART_FROM:
            return [INLINE, body]
        name = digest(body)
        parts[name] = body
        return [REFERENCE, name]

    # Exactly a list: a subclass would come back as a plain one.
    if type(value) is not list:
        return cell_of(dump(value, serde)), parts
    if len(value) > SHORT_LIST:
        whole = dump(value, serde)
        if len(whole) < max(PART_FROM, ITEM_MEAN_FROM * len(value)):
            return cell_of(whole), parts
    return [ITEMS, [cell_of(dump(item, serde)) for item in value]], parts


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
    what: str,
    allowance: Allowance,
) -> object:
    """Undo `lay_out`; the parts hold every digest that `references` yields.

    A part that is referred to many times takes memory as many times, and is counted so.

    Raises:
        TooLargeError: The allowance has no room for it.
        CorruptCheckpointError: The value cannot be read.
    """
    if cell[0] == INLINE:
        return load(cell[1], serde, what, allowance)
    if cell[0] == REFERENCE:
        return load(parts[cell[1]], serde, what, allowance)
    return [assemble(item, parts, serde, what, allowance) for item in cell[1]]


class Digests:
    """Names bodies by their digests, and remembers those of the latest bodies.

    A body is found by its length and its ends and then compared whole, which takes a tenth of the
    time of a SHA-256.
    """

    def __init__(self, digest: Callable[[bytes], bytes], capacity: int = REMEMBERED_BYTES) -> None:
        self._digest = digest
        self._capacity = capacity
        self._num_bytes = 0
        self._known: OrderedDict[tuple[int, bytes, bytes], tuple[bytes, bytes]] = OrderedDict()

    def __call__(self, body: bytes) -> bytes:
        """Return the digest of a body."""
        ends = (len(body), body[:SAMPLE], body[-SAMPLE:])
        known = self._known.pop(ends, None)
        if known is not None and known[0] == body:
            self._known[ends] = known
            return known[1]
        digest = self._digest(body)
        self._known[ends] = (body, digest)
        self._num_bytes += len(body) - (0 if known is None else len(known[0]))
        while self._num_bytes > self._capacity:
            _, (oldest, _) = self._known.popitem(last=False)
            self._num_bytes -= len(oldest)
        return digest
