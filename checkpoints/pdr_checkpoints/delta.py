"""Delta channels: reads what rebuilds them in a few round trips; pruning keeps it.

A delta channel stores its value now and then. In between, LangGraph rebuilds it from the last
stored value (the seed) and from what tasks wrote at every ancestor since. LangGraph's own way reads
each ancestor whole, in several round trips.

The parent of a checkpoint is named inside its record, which may be encrypted, so the server cannot
follow the line. But ancestors have smaller ids, and the index is in order. So one script returns a
checkpoint, those before it, and the writes of each. Where the line leads out of such a page, the
next page begins there, so a fork's other branch is passed over. Then the seeds and the parts of
writes are read side by side. A seed that is one part brings it along; an encrypted one cannot, so
another read follows.

Source: `BaseCheckpointSaver.get_delta_channel_history`, whose results these are.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import ormsgpack
from langgraph.checkpoint.base import DeltaChannelHistory
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import DIGEST_BYTES, Envelope, describe
from pdr_checkpoints.errors import CorruptCheckpointError
from pdr_checkpoints.reader import Bodies, described_value, described_write, read_fields
from pdr_checkpoints.records import (
    REFERENCE,
    Cell,
    CheckpointRecord,
    Place,
    assemble,
    check_head,
    ordered_writes,
    references,
    unpack_cell,
)
from pdr_checkpoints.serde import Allowance
from pdr_checkpoints.store import Store

DELTA_COUNTERS: Final = "counters_since_delta_snapshot"
"""Metadata key that names the delta channels of a checkpoint which did not store their value."""
FIRST_PAGE: Final = 16
"""Checkpoints in the first page of a line."""
PAGE: Final = 128
"""Checkpoints in each further page: about a millisecond of the server's time."""
PAGE_BYTES: Final = 1_000_000
"""A page ends with the checkpoint that reaches this size."""

_FRAMES: Final = """
local out, size = {}, 0
local function add(blob)
  blob = blob or ''
  out[#out + 1] = struct.pack('>I4', #blob)
  out[#out + 1] = blob
  size = size + #blob
end
"""
"""Collects blobs in one string, each with its length before it: redis-py takes four times as long
to read a list. What is missing has no bytes."""
LINE: Final = (
    _FRAMES
    + r"""
local data, index, first = KEYS[1], KEYS[2], ARGV[2]
local low, high, count, limit = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
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
    local writes = redis.call('ZRANGEBYLEX', index, '[' .. stem .. '\0', '(' .. stem .. '\1')
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
)
"""Returns the head of a thread, then a checkpoint ('' is the latest) and those before it: name,
record, number of writes, name and blob of each write."""
SEEDS: Final = (
    _FRAMES
    + r"""
for at = 2, #ARGV do
  local blob = redis.call('HGET', KEYS[1], ARGV[at])
  add(blob)
  -- A plain reference: header (2 bytes), check (4), the cell's beginning (4), digest (16).
  local refers = blob and #blob == 26 and blob:sub(1, 2) == '\1\0' and blob:sub(7, 10) == ARGV[1]
  local part = refers and 'p' .. blob:sub(11)
  add(part)
  add(part and redis.call('HGET', KEYS[1], part))
end
return table.concat(out)
"""
)
"""Returns values, each with name and blob of its part if the server can see that it is one."""
REFERENCE_BEGINS: Final = ormsgpack.packb([REFERENCE, bytes(DIGEST_BYTES)])[:-DIGEST_BYTES]

LinePage = Mapping[bytes, tuple[bytes, Mapping[bytes, bytes]]]
"""Blob of each record, and those of its writes by field; by field of the record."""
Line = AsyncGenerator[tuple[Place, CheckpointRecord, Mapping[bytes, bytes]], None]
"""A checkpoint and its ancestors, nearest first, with the blobs of their writes by field."""


@dataclass(slots=True)
class _Gathered:
    """The writes and the seed of one channel, as found among the ancestors."""

    writes: list[tuple[Place, str, Cell]]
    """Checkpoint, task id and value of each write, the newest first."""
    seed: tuple[Place, bytes] | None = None
    """Checkpoint and field of the last stored value; None until found."""


@dataclass(frozen=True, slots=True)
class DeltaReader:
    """Reads what rebuilds delta channels."""

    store: Store
    envelope: Envelope
    serde: SerializerProtocol

    async def history(
        self, thread_id: str, ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        """Read seeds and writes at a checkpoint; without an id, at the latest.

        For each channel: the value at the nearest ancestor that stored one (no seed if none did),
        and all writes to the channel there and since, oldest first. Writes at the checkpoint itself
        are left out.

        Raises:
            CorruptCheckpointError: Bytes that are needed are missing, cut or altered.
        """
        try:
            return await self._history(thread_id, ns, checkpoint_id, channels)
        except CorruptCheckpointError:
            # The thread may have been pruned or deleted between two reads. Real damage shows again.
            return await self._history(thread_id, ns, checkpoint_id, channels)

    async def _history(
        self, thread_id: str, ns: str, checkpoint_id: str | None, channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        envelope = self.envelope.of(thread_id)
        gathered = {channel: _Gathered([]) for channel in channels}
        allowance = self.envelope.allowance()
        line = self._line(thread_id, ns, checkpoint_id, allowance)
        await self._gather(line, gathered, allowance)
        seeds = {name: one.seed for name, one in gathered.items() if one.seed is not None}
        found = [cell for one in gathered.values() for *_, cell in one.writes]
        digests = {digest for cell in found for digest in references(cell)}
        blobs, of_writes = await asyncio.gather(
            self._seeds(thread_id, [field for _, field in seeds.values()]),
            read_fields(self.store, thread_id, [keys.part(digest) for digest in digests]),
        )
        blobs |= of_writes
        cells = {
            channel: unpack_cell(blobs[field], envelope, field, allowance)
            for channel, (_, field) in seeds.items()
        }
        digests |= {digest for cell in cells.values() for digest in references(cell)}
        names = [keys.part(digest) for digest in digests]
        rest = [name for name in names if name not in blobs]
        blobs |= await read_fields(self.store, thread_id, rest)
        parts = Bodies({name: blobs[name] for name in names}, envelope, allowance.limit // 4)
        histories: dict[str, DeltaChannelHistory] = {}
        for channel, one in gathered.items():
            histories[channel] = {"writes": []}
            for place, task_id, cell in reversed(one.writes):
                what = described_write(channel, place)
                value = assemble(cell, parts, self.serde, what, allowance)
                histories[channel]["writes"].append((task_id, channel, value))
            if one.seed is not None:
                what = described_value(channel, one.seed[0])
                seed = assemble(cells[channel], parts, self.serde, what, allowance)
                histories[channel]["seed"] = seed
        return histories

    async def _gather(
        self, line: Line, gathered: Mapping[str, _Gathered], allowance: Allowance
    ) -> None:
        """Walk a line until each channel has its seed, or to its end."""
        unseeded = set(gathered)
        async with aclosing(line):
            # The checkpoint itself: its writes belong to the next super-step.
            await anext(line, None)
            async for place, record, writes in line:
                envelope = self.envelope.of(place.thread_id)
                ordered = ordered_writes(writes, envelope, allowance)
                for (_, task_id, _), channel, cell in reversed(ordered):
                    if channel in unseeded:
                        gathered[channel].writes.append((place, task_id, cell))
                stored = unseeded.intersection(record.channels)
                if stored:
                    versions = record.bare(self.serde, place, allowance)["channel_versions"]
                    for name in stored:
                        gathered[name].seed = place, place.cell(name, versions[name])
                    unseeded -= stored
                if not unseeded:
                    return

    async def _line(
        self, thread_id: str, ns: str, checkpoint_id: str | None, allowance: Allowance
    ) -> Line:
        """Yield a checkpoint and its ancestors, up to the root or to one that was removed."""
        place = Place(thread_id, ns, checkpoint_id) if checkpoint_id else None
        page = await self._page(thread_id, ns, place.record if place else b"", FIRST_PAGE)
        if place is None:
            name = next(iter(page), b"")
            place = Place.of(thread_id, name) if name else None
        passed: set[str] = set()
        while place is not None and (name := place.record) in page:
            if place.checkpoint_id in passed:
                raise CorruptCheckpointError(place.described, "it is an ancestor of itself")
            passed.add(place.checkpoint_id)
            blob, writes = page[name]
            if not blob:
                raise CorruptCheckpointError(describe(name), "it is missing")
            envelope = self.envelope.of(thread_id)
            record = CheckpointRecord.unpack(blob, envelope, name, allowance)
            yield place, record, writes
            place = Place(thread_id, ns, record.parent_id) if record.parent_id else None
            if place is not None and place.record not in page:
                page = await self._page(thread_id, ns, place.record, PAGE)

    async def _page(self, thread_id: str, ns: str, first: bytes, size: int) -> LinePage:
        """Read a checkpoint (b"" is the latest) and those before it, with their writes."""
        thread = self.store.thread(thread_id)
        bounds = keys.below(keys.RECORD, ns)
        arguments = (keys.HEAD, first, *bounds, size, PAGE_BYTES)
        frames = _frames(await self.store.script(LINE, (thread.data, thread.index), arguments))
        check_head(next(frames) or None, thread_id)
        page = {}
        for name in frames:
            blob, count = next(frames), int(next(frames))
            page[name] = blob, {next(frames): next(frames) for _ in range(count)}
        return page

    async def _seeds(self, thread_id: str, names: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """Read values by field, and their parts where the server can see them."""
        if not names:
            return {}
        data_key = self.store.thread(thread_id).data
        frames = _frames(await self.store.script(SEEDS, (data_key,), (REFERENCE_BEGINS, *names)))
        blobs: dict[bytes, bytes | None] = {}
        for name, blob, part, body in zip(names, frames, frames, frames, strict=False):
            blobs |= {name: blob or None, part: body or None}
        return blobs


def delta_ancestors(
    places: Set[Place],
    snapshot: Mapping[Place, CheckpointRecord],
    serde: SerializerProtocol,
    allowance: Callable[[], Allowance],
) -> frozenset[Place]:
    """Find the checkpoints of a thread that are needed to rebuild delta channels at `places`.

    Removing one of them would change a channel's value without an error.
    """
    needed: set[Place] = set()
    for place in places:
        record = snapshot[place]
        counters = record.facts(serde, place, allowance()).get(DELTA_COUNTERS)
        unseeded = set(counters if isinstance(counters, dict) else ()) - set(record.channels)
        if unseeded:
            # A channel without a version was never written: nothing rebuilds it.
            unseeded &= set(record.bare(serde, place, allowance())["channel_versions"])
        line: set[Place] = set()
        while unseeded and record.parent_id:
            ancestor = Place(place.thread_id, place.ns, record.parent_id)
            if ancestor not in snapshot or ancestor in line:
                break
            line.add(ancestor)
            record = snapshot[ancestor]
            unseeded -= set(record.channels)
        needed |= line
    return frozenset(needed)


def _frames(reply: bytes) -> Iterator[bytes]:
    """Cut a string of blobs, each with its length in four bytes before it."""
    end = 0
    while end < len(reply):
        start = end + 4
        end = start + int.from_bytes(reply[end:start], "big")
        yield reply[start:end]
