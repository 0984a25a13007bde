r"""How one value is laid out: small ones in place, large ones as parts named by their content.

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

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpoints.errors import CorruptCheckpointError, UnknownSerializationError

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
