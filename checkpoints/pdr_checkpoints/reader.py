"""Reads checkpoints back: the latest, an exact one, a page of history, what delta channels need.

A delta channel stores its value now and then. In between, LangGraph rebuilds it from the last
stored value (the seed) and from what tasks wrote at every ancestor since. The parent of a
checkpoint is named inside its record, which may be encrypted, so the server cannot follow the line.
But ancestors have smaller ids, and the index is in order. So one script returns a checkpoint, those
before it and the writes of each. Where the line leads out of such a page, the next page begins
there, so a fork's other branch is passed over. Two reads follow: the seeds with the parts of
writes, then the parts of seeds.
"""

import itertools
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    Checkpoint,
    CheckpointTuple,
    DeltaChannelHistory,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import Envelope, describe
from pdr_checkpoints.errors import CorruptCheckpointError
from pdr_checkpoints.records import (
    Cell,
    CheckpointRecord,
    Place,
    Writes,
    assemble,
    check_head,
    load,
    references,
    unpack_cell,
)
from pdr_checkpoints.store import Store, chunks

PAGE: Final = 16
"""Checkpoints read at a time when no smaller limit is given."""
LONG_PAGE: Final = 128
"""Checkpoints in every page of a line after the first: about a millisecond of the server's time."""
PAGE_BYTES: Final = 1_000_000
"""A page of a line ends with the checkpoint that reaches this size."""

LINE: Final = """
local data, index, first = KEYS[1], KEYS[2], ARGV[2]
local low, high, count, limit = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local out, size = {}, 0
local function add(blob)
  blob = blob or ''
  out[#out + 1] = struct.pack('>I4', #blob)
  out[#out + 1] = blob
  size = size + #blob
end
add(redis.call('HGET', data, ARGV[1]))
if first == '' then
  first = redis.call('ZREVRANGEBYLEX', index, high, low, 'LIMIT', 0, 1)[1]
  if not first then return table.concat(out) end
end
local names = redis.call('ZREVRANGEBYLEX', index, '(' .. first, low, 'LIMIT', 0, count - 1)
table.insert(names, 1, first)
for at, name in ipairs(names) do
  local record = redis.call('HGET', data, name)
  if record or at > 1 or redis.call('ZSCORE', index, name) then
    local stem = 'w' .. name:sub(2)
    local writes = redis.call('ZRANGEBYLEX', index, '[' .. stem .. '\\0', '(' .. stem .. '\\1')
    add(name)
    add(record)
    add(tostring(#writes))
    for _, write in ipairs(writes) do
      add(write)
      add(redis.call('HGET', data, write))
    end
  end
  if size >= limit then break end
end
return table.concat(out)
"""
"""Returns the head of a thread, then a checkpoint ('' is the latest) and those before it: name,
record, number of writes, name and blob of each write. Each has its length before it, all in one
string: redis-py takes four times as long to read a list. What is missing has no bytes."""

OrderedWrites = list[tuple[tuple[str, str, int], str, Cell]]
"""Sort key (task path, task id, index), channel and value of each write, in order."""
Line = AsyncGenerator[tuple[Place, CheckpointRecord, OrderedWrites], None]
"""A checkpoint and its ancestors, nearest first."""


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

    def open(self, serde: SerializerProtocol) -> Iterator[bytes]:
        """Read the record, and yield the fields to read next."""
        self.bare = load(self.record.checkpoint, serde, self.place.described)
        versions = self.bare["channel_versions"]
        self.cell_names = {
            name: self.place.cell(name, versions[name]) for name in self.record.channels
        }
        yield from self.cell_names.values()
        yield from self.write_names

    def take(self, blobs: Mapping[bytes, bytes | None], envelope: Envelope) -> Iterator[bytes]:
        """Take the blobs of those fields, and yield the digests of the parts to read last."""
        for channel, name in self.cell_names.items():
            self.cells[channel] = unpack_cell(blobs[name], envelope, name)
        self.writes = _in_order({name: blobs[name] for name in self.write_names}, envelope)
        for cell in (*self.cells.values(), *(write[2] for write in self.writes)):
            yield from references(cell)

    def finish(self, parts: Mapping[bytes, bytes], serde: SerializerProtocol) -> CheckpointTuple:
        """Put the checkpoint together."""
        place, here = self.place, self.place.described
        values = {
            name: assemble(cell, parts, serde, _described_value(name, place))
            for name, cell in self.cells.items()
        }
        pending = []
        for (_, task_id, _), channel, cell in self.writes:
            what = _described_write(channel, place)
            pending.append((task_id, channel, assemble(cell, parts, serde, what)))
        parent_id = self.record.parent_id
        return CheckpointTuple(
            config=config_of(place),
            checkpoint=cast(Checkpoint, {**self.bare, "channel_values": values}),
            metadata=load(self.record.metadata, serde, f"metadata of {here}"),
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
        members: list[bytes] = await self.store.call("ZREVRANGEBYLEX", index, high, low)
        places = [Place.of(thread_id, member) for member in members]
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
        loadings = await self._records(places)
        try:
            return await self._tuples(loadings)
        except CorruptCheckpointError:
            # Pruned or deleted between two reads, perhaps: then the records are gone as well.
            again = await self._records(places)
            if [one.record for one in again] == [one.record for one in loadings]:
                raise
            return await self._tuples(again)

    async def page(
        self, places: Sequence[Place], filters: Mapping[str, object], limit: int
    ) -> AsyncGenerator[CheckpointTuple, None]:
        """Read checkpoints of one thread, a page at a time; yield those whose metadata match."""
        while limit > 0 and places:
            size = PAGE if filters else min(PAGE, limit)
            chosen, places = places[:size], places[size:]
            if filters:
                chosen = await self._matching(chosen, filters)
            for found in await self.get(chosen[:limit]):
                limit -= 1
                yield found

    async def delta_history(
        self, thread_id: str, ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        """Read what rebuilds delta channels at a checkpoint, the latest if no id is given.

        Of each channel: the value at the nearest ancestor that stored one, and all that was
        written to it there and since, oldest first. The checkpoint's own writes are not among them.

        Raises:
            CorruptCheckpointError: Bytes on the way are missing, cut or altered.
        """
        try:
            return await self._delta_history(thread_id, ns, checkpoint_id, channels)
        except CorruptCheckpointError:
            # Pruned or deleted between two reads, perhaps: real damage is still there.
            return await self._delta_history(thread_id, ns, checkpoint_id, channels)

    async def _delta_history(
        self, thread_id: str, ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        written: dict[str, list[tuple[Place, str, Cell]]] = {name: [] for name in channels}
        seeds: dict[str, tuple[Place, bytes]] = {}
        missing = set(channels)
        async with aclosing(self._line(thread_id, ns, checkpoint_id)) as line:
            # The checkpoint itself, whose writes belong to the next super-step.
            await anext(line, None)
            async for place, record, writes in line:
                for (_, task_id, _), channel, cell in reversed(writes):
                    if channel in missing:
                        written[channel].append((place, task_id, cell))
                if stored := missing.intersection(record.channels):
                    bare = load(record.checkpoint, self.serde, place.described)
                    for name in stored:
                        seeds[name] = place, place.cell(name, bare["channel_versions"][name])
                    missing -= stored
                if not missing:
                    break
        found = (cell for entries in written.values() for *_, cell in entries)
        digests = [digest for cell in found for digest in references(cell)]
        wanted = [name for _, name in seeds.values()]
        blobs = await self._fields(thread_id, [*wanted, *map(keys.part, digests)])
        cells = {
            channel: unpack_cell(blobs[name], self.envelope, name)
            for channel, (_, name) in seeds.items()
        }
        of_seeds = [digest for cell in cells.values() for digest in references(cell)]
        rest = [name for name in map(keys.part, of_seeds) if name not in blobs]
        blobs |= await self._fields(thread_id, rest)
        parts = {
            digest: self.envelope.unwrap(blobs[name], name)
            for digest in {*digests, *of_seeds}
            if (name := keys.part(digest))
        }
        histories: dict[str, DeltaChannelHistory] = {}
        for channel, entries in written.items():
            history = histories[channel] = {"writes": []}
            for place, task_id, cell in reversed(entries):
                what = _described_write(channel, place)
                value = assemble(cell, parts, self.serde, what)
                history["writes"].append((task_id, channel, value))
            if channel in seeds:
                what = _described_value(channel, seeds[channel][0])
                history["seed"] = assemble(cells[channel], parts, self.serde, what)
        return histories

    async def _line(self, thread_id: str, ns: str, checkpoint_id: str | None) -> Line:
        """Yield a checkpoint and its ancestors up to the root, or to one that was removed."""
        page: dict[bytes, tuple[bytes, dict[bytes, bytes]]] = {}
        name, size, passed = b"", PAGE, set[str]()
        while True:
            if checkpoint_id:
                name = Place(thread_id, ns, checkpoint_id).record
            if name not in page:
                page = await self._line_page(thread_id, ns, name, size)
                size = LONG_PAGE
            name = name or next(iter(page), b"")
            if name not in page:
                return
            place = Place.of(thread_id, name)
            if place.checkpoint_id in passed:
                raise CorruptCheckpointError(place.described, "it is an ancestor of itself")
            passed.add(place.checkpoint_id)
            blob, writes = page[name]
            if not blob:
                raise CorruptCheckpointError(describe(name), "it is missing")
            record = CheckpointRecord.unpack(blob, self.envelope, name)
            yield place, record, _in_order(writes, self.envelope)
            if not record.parent_id:
                return
            checkpoint_id = record.parent_id

    async def _line_page(
        self, thread_id: str, ns: str, first: bytes, size: int
    ) -> dict[bytes, tuple[bytes, dict[bytes, bytes]]]:
        """Read records and writes of a checkpoint and of those before it, by name of the record."""
        thread = self.store.thread(thread_id)
        low, high = keys.below(keys.RECORD, ns)
        arguments = (keys.HEAD, first, low, high, size, PAGE_BYTES)
        reply = await self.store.script(LINE, (thread.data, thread.index), arguments)
        frames = _frames(reply)
        check_head(next(frames) or None, thread_id)
        page = {}
        for name in frames:
            blob, count = next(frames), int(next(frames))
            page[name] = blob, {next(frames): next(frames) for _ in range(count)}
        return page

    async def _matching(
        self, places: Sequence[Place], filters: Mapping[str, object]
    ) -> list[Place]:
        matching = []
        for one in await self._records(places):
            here = f"metadata of {one.place.described}"
            metadata = load(one.record.metadata, self.serde, here)
            if all(metadata.get(name) == value for name, value in filters.items()):
                matching.append(one.place)
        return matching

    async def _records(self, places: Sequence[Place]) -> list[_Loading]:
        if not places:
            return []
        thread_id = places[0].thread_id
        thread = self.store.thread(thread_id)
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
                record = CheckpointRecord.unpack(blob, self.envelope, name)
                found.append(_Loading(place, record, own))
            # Both are removed together, so a name without a record is a loss, not an absence.
            elif await self.store.call("ZSCORE", thread.index, name) is not None:
                raise CorruptCheckpointError(describe(name), "it is missing")
        return found

    async def _tuples(self, loadings: Sequence[_Loading]) -> list[CheckpointTuple]:
        if not loadings:
            return []
        thread_id = loadings[0].place.thread_id
        blobs = await self._fields(
            thread_id, [name for one in loadings for name in one.open(self.serde)]
        )
        digests = [digest for one in loadings for digest in one.take(blobs, self.envelope)]
        bodies = await self._fields(thread_id, [keys.part(digest) for digest in digests])
        parts = {name[1:]: self.envelope.unwrap(blob, name) for name, blob in bodies.items()}
        return [one.finish(parts, self.serde) for one in loadings]

    async def _fields(self, thread_id: str, names: Sequence[bytes]) -> dict[bytes, bytes | None]:
        if not names:
            return {}
        names = list(dict.fromkeys(names))
        commands = [("HMGET", self.store.thread(thread_id).data, *some) for some in chunks(names)]
        if len(commands) == 1:
            found = await self.store.call(*commands[0])
        else:
            found = itertools.chain.from_iterable(await self.store.pipeline(commands))
        return dict(zip(names, found, strict=True))


def _in_order(blobs: Mapping[bytes, bytes | None], envelope: Envelope) -> OrderedWrites:
    """Unpack the writes of one checkpoint, by field; of two of one index the earlier stands."""
    calls = []
    for name, blob in blobs.items():
        writes = Writes.unpack(blob, envelope, name)
        calls.append((writes.time_ns, keys.split(name)[2], writes))
    found: dict[tuple[str, int], tuple[tuple[str, str, int], str, Cell]] = {}
    for _, task_id, writes in sorted(calls, key=lambda call: call[:2]):
        for index, channel, cell in writes.cells:
            key = writes_sort_key(writes.task_path, task_id, index)
            found.setdefault((task_id, index), (key, channel, cell))
    return sorted(found.values(), key=lambda write: write[0])


def _frames(reply: bytes) -> Iterator[bytes]:
    """Cut a string of blobs, each with its length in four bytes before it."""
    end = 0
    while end < len(reply):
        start = end + 4
        end = start + int.from_bytes(reply[end:start], "big")
        yield reply[start:end]


def _described_value(channel: str, place: Place) -> str:
    return f"channel {channel!r} of {place.described}"


def _described_write(channel: str, place: Place) -> str:
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
