"""Reads checkpoints back: the latest, an exact one, or a page of history."""

import itertools
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, CheckpointTuple
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import Envelope, ThreadEnvelope, describe
from pdr_checkpoints.errors import CorruptCheckpointError
from pdr_checkpoints.records import (
    Cell,
    CheckpointRecord,
    OrderedWrites,
    Place,
    assemble,
    check_head,
    ordered_writes,
    references,
    unpack_cell,
)
from pdr_checkpoints.serde import Allowance
from pdr_checkpoints.store import Command, Store, chunks

PAGE: Final = 16
"""Checkpoints read at a time when no smaller limit is given."""


class Bodies(Mapping[bytes, bytes]):
    """The parts of some checkpoints, each unwrapped when it is asked for.

    They are kept as long as they are small together: parts are shared, and can be many.
    """

    def __init__(
        self, blobs: Mapping[bytes, bytes | None], envelope: ThreadEnvelope, most: int
    ) -> None:
        self._blobs = blobs
        """By field."""
        self._envelope = envelope
        self._most = most
        self._open: dict[bytes, bytes] = {}
        self._left = most

    def __getitem__(self, digest: bytes) -> bytes:
        body = self._open.get(digest)
        if body is None:
            name = keys.part(digest)
            body = self._envelope.unwrap(self._blobs[name], name)
            if len(body) > self._left:
                self._open.clear()
                self._left = self._most
            if len(body) <= self._left:
                self._open[digest] = body
                self._left -= len(body)
        return body

    def __iter__(self) -> Iterator[bytes]:
        return (name[1:] for name in self._blobs)

    def __len__(self) -> int:
        return len(self._blobs)


@dataclass(slots=True)
class _Loading:
    """A checkpoint on its way back: its record, then its cells and writes, then their parts."""

    place: Place
    record: CheckpointRecord
    write_names: Sequence[bytes]
    """Fields of its pending writes."""
    bare: dict[str, Any] = field(default_factory=dict)
    """The checkpoint without its values: LangGraph's TypedDict less one key."""
    cell_names: dict[str, bytes] = field(default_factory=dict)
    """Fields of the values, by channel."""
    cells: dict[str, Cell] = field(default_factory=dict)
    """By channel."""
    writes: OrderedWrites = field(default_factory=list)

    def open(self, serde: SerializerProtocol, allowance: Allowance) -> Iterator[bytes]:
        """Read the record, and yield the fields to read next."""
        self.bare = self.record.bare(serde, self.place, allowance)
        versions = self.bare["channel_versions"]
        self.cell_names = {
            name: self.place.cell(name, versions[name]) for name in self.record.channels
        }
        yield from self.cell_names.values()
        yield from self.write_names

    def take(
        self,
        blobs: Mapping[bytes, bytes | None],
        envelope: ThreadEnvelope,
        allowance: Allowance,
    ) -> Iterator[bytes]:
        """Take the blobs of those fields, and yield the digests of the parts to read last."""
        for channel, name in self.cell_names.items():
            self.cells[channel] = unpack_cell(blobs[name], envelope, name, allowance)
        own = {name: blobs[name] for name in self.write_names}
        self.writes = ordered_writes(own, envelope, allowance)
        for cell in (*self.cells.values(), *(write[2] for write in self.writes)):
            yield from references(cell)

    def finish(
        self, parts: Mapping[bytes, bytes], serde: SerializerProtocol, allowance: Allowance
    ) -> CheckpointTuple:
        """Put the checkpoint together."""
        place = self.place
        values = {
            name: assemble(cell, parts, serde, described_value(name, place), allowance)
            for name, cell in self.cells.items()
        }
        pending = []
        for (_, task_id, _), channel, cell in self.writes:
            value = assemble(cell, parts, serde, described_write(channel, place), allowance)
            pending.append((task_id, channel, value))
        parent_id = self.record.parent_id
        return CheckpointTuple(
            config=config_of(place),
            checkpoint=cast(Checkpoint, {**self.bare, "channel_values": values}),
            metadata=cast(CheckpointMetadata, self.record.facts(serde, place, allowance)),
            parent_config=(
                config_of(Place(place.thread_id, place.ns, parent_id)) if parent_id else None
            ),
            pending_writes=pending,
        )


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns stored bytes into checkpoint tuples."""

    store: Store
    envelope: Envelope
    serde: SerializerProtocol

    async def latest(self, thread_id: str, ns: str) -> Place | None:
        """Find the newest checkpoint of a namespace."""
        low, high = keys.below(keys.RECORD, ns)
        index = self.store.thread(thread_id).index
        found: list[bytes] = await self.store.call(
            "ZREVRANGEBYLEX", index, high, low, "LIMIT", 0, 1
        )
        return Place.of(thread_id, found[0]) if found else None

    async def places(self, thread_id: str, ns: str | None, before: str | None) -> list[Place]:
        """List the checkpoints of a namespace, or of a whole thread (`ns` None), newest first."""
        low, high = keys.below(keys.RECORD, *(() if ns is None else (ns,)))
        if ns is not None and before is not None:
            high = b"(" + keys.join(keys.RECORD, ns, before)
        index = self.store.thread(thread_id).index
        members = await self.store.members(index, low, high)
        places = [Place.of(thread_id, member) for member in reversed(members)]
        if ns is None:
            # The index is in order within a namespace only.
            places.sort(key=lambda place: place.checkpoint_id, reverse=True)
            if before is not None:
                places = [place for place in places if place.checkpoint_id < before]
        return places

    async def get(self, places: Sequence[Place]) -> list[CheckpointTuple]:
        """Read checkpoints of one thread; those that do not exist are left out.

        Raises:
            CorruptCheckpointError: Stored bytes are missing, cut or altered.
        """
        loadings = await self._records(places, self.envelope.allowance())
        try:
            return await self._tuples(loadings)
        except CorruptCheckpointError:
            # The thread may have been pruned, deleted or sealed anew between two reads. Real damage
            # shows again.
            return await self._tuples(await self._records(places, self.envelope.allowance()))

    async def page(
        self, places: Sequence[Place], filters: Mapping[str, object], limit: int
    ) -> AsyncGenerator[CheckpointTuple, None]:
        """Read checkpoints of one thread, a page at a time; yield those whose metadata match."""
        while limit > 0 and places:
            size = PAGE if filters else min(PAGE, limit)
            chosen, places = places[:size], places[size:]
            if filters:
                chosen = await self._matching(chosen, filters)
            async for found in self._each(chosen[:limit]):
                limit -= 1
                yield found

    async def _each(self, places: Sequence[Place]) -> AsyncGenerator[CheckpointTuple, None]:
        """Read checkpoints in the round trips of one, and build one at a time.

        Checkpoints that cannot be read together are read one by one. They may be too large only
        together, and one that was pruned meanwhile is left out.
        """
        try:
            loadings = await self._records(places, self.envelope.allowance())
            parts = await self._parts(loadings)
        except CorruptCheckpointError:
            for place in places:
                for found in await self.get([place]):
                    yield found
            return
        for one in loadings:
            try:
                tuples = [one.finish(parts, self.serde, self.envelope.allowance())]
            except CorruptCheckpointError:
                tuples = await self.get([one.place])
            for found in tuples:
                yield found

    async def _matching(
        self, places: Sequence[Place], filters: Mapping[str, object]
    ) -> list[Place]:
        matching, allowance = [], self.envelope.allowance()
        for one in await self._records(places, allowance):
            metadata = one.record.facts(self.serde, one.place, allowance)
            if all(metadata.get(name) == value for name, value in filters.items()):
                matching.append(one.place)
        return matching

    async def _records(self, places: Sequence[Place], allowance: Allowance) -> list[_Loading]:
        if not places:
            return []
        thread_id = places[0].thread_id
        thread, envelope = self.store.thread(thread_id), self.envelope.of(thread_id)
        names = [place.record for place in places]
        ranges = [keys.below(keys.WRITE, place.ns, place.checkpoint_id) for place in places]
        (head, *blobs), *write_names = await self.store.pipeline(
            [
                ("HMGET", thread.data, keys.HEAD, *names),
                *(("ZRANGEBYLEX", thread.index, low, high) for low, high in ranges),
            ]
        )
        check_head(head, thread_id)
        found = []
        for place, name, blob, own in zip(places, names, blobs, write_names, strict=True):
            if blob is not None:
                record = CheckpointRecord.unpack(blob, envelope, name, allowance)
                found.append(_Loading(place, record, own))
            # Both are removed together, so a name without a record is a loss, not an absence.
            elif await self.store.call("ZSCORE", thread.index, name) is not None:
                raise CorruptCheckpointError(describe(name), "it is missing")
        return found

    async def _tuples(self, loadings: Sequence[_Loading]) -> list[CheckpointTuple]:
        parts = await self._parts(loadings)
        return [one.finish(parts, self.serde, self.envelope.allowance()) for one in loadings]

    async def _parts(self, loadings: Sequence[_Loading]) -> Bodies:
        # Read cells and writes of checkpoints, and then their parts, still wrapped.
        thread_id = loadings[0].place.thread_id if loadings else ""
        envelope, allowance = self.envelope.of(thread_id), self.envelope.allowance()
        names = [name for one in loadings for name in one.open(self.serde, allowance)]
        blobs = await read_fields(self.store, thread_id, names)
        digests = {digest for one in loadings for digest in one.take(blobs, envelope, allowance)}
        fields = await read_fields(self.store, thread_id, [keys.part(digest) for digest in digests])
        return Bodies(fields, envelope, allowance.limit // 4)


async def read_fields(
    store: Store, thread_id: str, names: Sequence[bytes]
) -> dict[bytes, bytes | None]:
    """Read fields of a thread, by name, in one round trip; None stands for a lost one."""
    if not names:
        return {}
    names = list(dict.fromkeys(names))
    data_key = store.thread(thread_id).data
    commands: list[Command] = [("HMGET", data_key, *chunk) for chunk in chunks(names)]
    found: Iterable[bytes | None]
    if len(commands) == 1:
        found = await store.call(*commands[0])
    else:
        found = itertools.chain.from_iterable(await store.pipeline(commands))
    return dict(zip(names, found, strict=True))


def described_value(channel: str, place: Place) -> str:
    """Name a channel's value in a message."""
    return f"channel {channel!r} of {place.described}"


def described_write(channel: str, place: Place) -> str:
    """Name a pending write in a message."""
    return f"pending write to channel {channel!r} of {place.described}"


def config_of(place: Place) -> RunnableConfig:
    """Name a checkpoint the way LangGraph does."""
    return {
        "configurable": {
            "thread_id": place.thread_id,
            "checkpoint_ns": place.ns,
            "checkpoint_id": place.checkpoint_id,
        }
    }
