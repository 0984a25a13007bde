"""Reads checkpoints back: the latest, an exact one, or a page of history.

One checkpoint on its way back from stored bytes to what LangGraph reads.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import Envelope, describe
from pdr_checkpoints.errors import CorruptCheckpointError
from pdr_checkpoints.keys import Keyspace
from pdr_checkpoints.records import (
    Cell,
    CheckpointRecord,
    Place,
    assemble,
    check_head,
    load,
    references,
    unpack_cell,
    unpack_record,
    unpack_writes,
)
from pdr_checkpoints.store import Store

# dict[str, Any]: a checkpoint without its values is LangGraph's TypedDict less one required key.
Bare = dict[str, Any]


@dataclass(slots=True)
class Loading:
    """A checkpoint whose record is read, and then its cells and writes, and then their parts."""

    place: Place
    record: CheckpointRecord | None
    """None when there is no such checkpoint."""
    write_names: Sequence[bytes]
    """Fields of its pending writes."""
    bare: Bare = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    """By channel."""
    writes: list[tuple[tuple[str, str, int], str, Cell]] = field(default_factory=list)
    """Sort key (task path, task id, index), channel and value."""

    def open(self, serde: SerializerProtocol) -> None:
        """Read the record.

        Raises:
            UnknownSerializationError: The serializer is not the one that wrote it.
        """
        if self.record is not None:
            self.bare = cast(Bare, load(self.record.checkpoint, serde, self.place.described))

    def cell_names(self) -> dict[str, bytes]:
        """Fields of the values, by channel."""
        if self.record is None:
            return {}
        versions = self.bare["channel_versions"]
        return {name: self.place.cell(name, versions[name]) for name in self.record.channels}

    def fields(self) -> Iterator[bytes]:
        """Yield the fields to read next."""
        if self.record is not None:
            yield from self.cell_names().values()
            yield from self.write_names

    def take(self, blobs: Mapping[bytes, bytes | None], envelope: Envelope) -> None:
        """Take the blobs of `fields`.

        Raises:
            CorruptCheckpointError: One is missing, cut or altered.
        """
        if self.record is None:
            return
        for channel, name in self.cell_names().items():
            self.cells[channel] = unpack_cell(_present(blobs[name], name), envelope, name)
        calls = []
        for name in self.write_names:
            writes = unpack_writes(_present(blobs[name], name), envelope, name)
            calls.append((writes.time_ns, keys.split(name)[2], writes))
        seen: set[tuple[str, int]] = set()
        for _, task_id, writes in sorted(calls, key=lambda call: call[:2]):
            for index, channel, cell in writes.cells:
                if (task_id, index) not in seen:
                    seen.add((task_id, index))
                    key = writes_sort_key(writes.task_path, task_id, index)
                    self.writes.append((key, channel, cell))
        self.writes.sort(key=lambda write: write[0])

    def references(self) -> Iterator[bytes]:
        """Yield the digests of the parts to read last."""
        for cell in self.cells.values():
            yield from references(cell)
        for _, _, cell in self.writes:
            yield from references(cell)

    def tuple(
        self, parts: Mapping[bytes, bytes], serde: SerializerProtocol
    ) -> CheckpointTuple | None:
        """Put the checkpoint together.

        Raises:
            CorruptCheckpointError: A value is laid out or serialised in an unknown way.
        """
        if self.record is None:
            return None
        here = self.place.described
        values = {
            name: assemble(cell, parts, serde, f"channel {name!r} of {here}")
            for name, cell in self.cells.items()
        }
        return CheckpointTuple(
            config=config_of(self.place),
            checkpoint=cast(Checkpoint, {**self.bare, "channel_values": values}),
            metadata=cast(
                CheckpointMetadata, load(self.record.metadata, serde, f"metadata of {here}")
            ),
            parent_config=(
                config_of(Place(self.place.thread_id, self.place.ns, self.record.parent_id))
                if self.record.parent_id
                else None
            ),
            pending_writes=[
                (
                    task_id,
                    channel,
                    assemble(cell, parts, serde, f"pending write to channel {channel!r} of {here}"),
                )
                for (_, task_id, _), channel, cell in self.writes
            ],
        )


def config_of(place: Place) -> RunnableConfig:
    """Name a checkpoint the way LangGraph does."""
    return {
        "configurable": {
            "thread_id": place.thread_id,
            "checkpoint_ns": place.ns,
            "checkpoint_id": place.checkpoint_id,
        }
    }


def _present(blob: bytes | None, name: bytes) -> bytes:
    if blob is None:
        raise CorruptCheckpointError(describe(name), "it is missing")
    return blob


PAGE: Final = 16
"""Checkpoints read at a time when no smaller limit is given."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns stored bytes into checkpoint tuples."""

    store: Store
    keyspace: Keyspace
    envelope: Envelope

    async def latest(self, thread_id: str, ns: str) -> Place | None:
        """Find the newest checkpoint of a namespace."""
        low, high = keys.below(keys.RECORD, ns)
        index = self.keyspace.thread(thread_id).index
        found: list[bytes] = await self.store.one("ZREVRANGEBYLEX", index, high, low, "LIMIT", 0, 1)
        return place_of(thread_id, found[0]) if found else None

    async def places(self, thread_id: str, ns: str | None, before: str | None) -> list[Place]:
        """List checkpoints of a thread, newest first; `ns` None means every namespace."""
        low, high = keys.below(keys.RECORD, *(() if ns is None else (ns,)))
        if ns is not None and before is not None:
            high = b"(" + keys.join(keys.RECORD, ns, before)
        index = self.keyspace.thread(thread_id).index
        members: list[bytes] = await self.store.one("ZREVRANGEBYLEX", index, high, low)
        places = [place_of(thread_id, member) for member in members]
        if ns is None:
            # The index is in order within a namespace only.
            places.sort(key=lambda place: place.checkpoint_id, reverse=True)
            if before is not None:
                places = [place for place in places if place.checkpoint_id < before]
        return places

    async def get(
        self, places: Sequence[Place], serde: SerializerProtocol
    ) -> list[CheckpointTuple | None]:
        """Read checkpoints of one thread; None where there is none.

        Raises:
            CorruptCheckpointError: Stored bytes are missing, cut or altered.
        """
        loadings = await self._records(places)
        try:
            return await self._tuples(loadings, serde)
        except CorruptCheckpointError:
            # Pruned or deleted between two reads, perhaps: then the records are gone as well.
            again = await self._records(places)
            if [one.record for one in again] == [one.record for one in loadings]:
                raise
            return await self._tuples(again, serde)

    async def page(
        self,
        places: Sequence[Place],
        filters: Mapping[str, object],
        limit: int | None,
        serde: SerializerProtocol,
    ) -> AsyncGenerator[CheckpointTuple, None]:
        """Read checkpoints of one thread, a page at a time, keeping those whose metadata match."""
        left = len(places) if limit is None else limit
        position = 0
        while left > 0 and position < len(places):
            size = PAGE if filters else min(PAGE, left)
            chosen = places[position : position + size]
            position += size
            if filters:
                chosen = await self._matching(chosen, filters, serde)
            for found in await self.get(chosen[:left], serde) if chosen else ():
                if found is not None:
                    left -= 1
                    yield found

    async def _matching(
        self, places: Sequence[Place], filters: Mapping[str, object], serde: SerializerProtocol
    ) -> list[Place]:
        matching = []
        for one in await self._records(places):
            if one.record is not None:
                # dict[str, Any]: metadata, whose keys are the caller's.
                here = f"metadata of {one.place.described}"
                metadata = cast(dict[str, Any], load(one.record.metadata, serde, here))
                if all(metadata.get(name) == value for name, value in filters.items()):
                    matching.append(one.place)
        return matching

    async def _records(self, places: Sequence[Place]) -> list[Loading]:
        thread_id = places[0].thread_id
        thread = self.keyspace.thread(thread_id)
        names = [place.record for place in places]
        ranges = [keys.below(keys.WRITE, place.ns, place.checkpoint_id) for place in places]
        blobs, *write_names = await self.store.read(
            [
                ("HMGET", thread.data, keys.HEAD, *names),
                *(("ZRANGEBYLEX", thread.index, low, high) for low, high in ranges),
            ]
        )
        check_head(blobs[0], thread_id)
        for name, blob in zip(names, blobs[1:], strict=True):
            # Both are removed together, so a name without a record is a loss, not an absence.
            if blob is None and await self.store.one("ZSCORE", thread.index, name) is not None:
                raise CorruptCheckpointError(describe(name), "it is missing")
        return [
            Loading(place, self._record(blob, name), own)
            for place, name, blob, own in zip(places, names, blobs[1:], write_names, strict=True)
        ]

    def _record(self, blob: bytes | None, name: bytes) -> CheckpointRecord | None:
        return None if blob is None else unpack_record(blob, self.envelope, name)

    async def _tuples(
        self, loadings: Sequence[Loading], serde: SerializerProtocol
    ) -> list[CheckpointTuple | None]:
        data_key = self.keyspace.thread(loadings[0].place.thread_id).data
        for one in loadings:
            one.open(serde)
        wanted = list(dict.fromkeys(name for one in loadings for name in one.fields()))
        blobs = dict(zip(wanted, await self._fields(data_key, wanted), strict=True))
        for one in loadings:
            one.take(blobs, self.envelope)
        digests = list(dict.fromkeys(digest for one in loadings for digest in one.references()))
        found = await self._fields(data_key, [keys.part(digest) for digest in digests])
        parts = {
            digest: open_part(digest, blob, self.envelope)
            for digest, blob in zip(digests, found, strict=True)
        }
        return [one.tuple(parts, serde) for one in loadings]

    async def _fields(self, data_key: str, names: Sequence[bytes]) -> list[bytes | None]:
        if not names:
            return []
        found: list[bytes | None] = await self.store.one("HMGET", data_key, *names)
        return found


def place_of(thread_id: str, member: bytes) -> Place:
    """Read the name of a record."""
    ns, checkpoint_id = keys.split(member)
    return Place(thread_id, ns, checkpoint_id)


def open_part(digest: bytes, blob: bytes | None, envelope: Envelope) -> bytes:
    """Give the body of a part.

    Raises:
        CorruptCheckpointError: It is missing, cut or altered.
    """
    name = keys.part(digest)
    if blob is None:
        raise CorruptCheckpointError(describe(name), "it is missing")
    return envelope.unwrap(blob, name)
