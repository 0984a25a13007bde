"""Writes checkpoints and pending writes, each in one round trip, several at once in one.

Remembers parts: which ones a server holds, so that a draft is sent once, and how they are named.

Only what a server acknowledged counts. A write that relies on it is applied only if each part is
still there, since a crash without an append-only file, a prune or a deletion elsewhere may have
removed it; if one is gone, all are sent again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from langgraph.checkpoint.base import WRITES_IDX_MAP, ChannelVersions, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.batch import Change, CommitBatcher
from pdr_checkpoints.envelope import Envelope
from pdr_checkpoints.keys import Keyspace, ThreadKeys
from pdr_checkpoints.records import (
    CheckpointRecord,
    Place,
    Writes,
    dump,
    lay_out,
    pack_cell,
    pack_head,
    pack_record,
    pack_writes,
)
from pdr_checkpoints.store import Command, Fence, Store

CAPACITY: Final = 32_768
"""Digests remembered, about 6 MB; the least recently used are forgotten, and sent again."""

REMEMBERED_BYTES: Final = 8_000_000
"""Of bodies whose digest is remembered: 250 drafts of 32 kB."""
SAMPLE: Final = 64


class Digests:
    """The digests of the latest bodies, since a draft comes twice: as a write, then in its channel.

    A body is found by its length and its ends and then compared whole, which takes a tenth of the
    time of a SHA-256.
    """

    def __init__(self, digest: Callable[[bytes], bytes], capacity: int = REMEMBERED_BYTES) -> None:
        self._digest = digest
        self._capacity = capacity
        self._num_bytes = 0
        self._known: OrderedDict[tuple[int, bytes, bytes], tuple[bytes, bytes]] = OrderedDict()

    def __call__(self, body: bytes) -> bytes:
        """Name a body by its content."""
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


class PartLedger:
    """Parts that the server acknowledged, by the key of their thread."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._stored: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def has(self, data_key: str, digest: bytes) -> bool:
        """Say whether the server acknowledged a part, and remember it for longer if so."""
        if (data_key, digest) not in self._stored:
            return False
        self._stored.move_to_end((data_key, digest))
        return True

    def add(self, data_key: str, digests: Iterable[bytes]) -> None:
        """Note parts that the server acknowledged."""
        self._stored.update(((data_key, digest), None) for digest in digests)
        while len(self._stored) > self._capacity:
            self._stored.popitem(last=False)


REGISTER_EVERY_S: Final = 30.0
"""On Cluster the registry is in another slot: refresh a thread's entry at most this often."""

ELSEWHERE_FROM: Final = 1_000_000
"""From this many bytes on, parts are compressed in a thread; 1 MB takes about 4 ms. Less is not
worth it: while the loop is busy, the interpreter lets another thread in only every 5 ms."""


@dataclass
class Writer:
    """Turns LangGraph's calls into changes and applies them."""

    store: Store
    keyspace: Keyspace
    envelope: Envelope
    ttl_s: float | None
    """Seconds that a thread lives after its last write; None keeps it."""
    ledger: PartLedger = field(default_factory=PartLedger)
    registered: dict[str, float] = field(default_factory=dict)
    digests: Digests = field(init=False)
    batcher: CommitBatcher = field(init=False)

    def __post_init__(self) -> None:
        self.digests = Digests(self.envelope.digest)
        self.batcher = CommitBatcher(self.apply)

    async def put(
        self,
        place: Place,
        parent_id: str | None,
        checkpoint: Checkpoint,
        metadata: Mapping[str, object],
        new_versions: ChannelVersions,
        serde: SerializerProtocol,
        fence: Fence | None,
    ) -> None:
        """Store a checkpoint and the values of the channels that changed."""
        values = checkpoint["channel_values"]
        change = Change(members=[place.record], is_checkpoint=True)
        for channel, version in new_versions.items():
            if channel in values:
                name = place.cell(channel, version)
                cell, parts = lay_out(values[channel], serde, self.digests)
                change.fields[name] = pack_cell(cell, self.envelope, name)
                change.parts |= parts
        bare = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        present = [name for name in values if name in checkpoint["channel_versions"]]
        record = CheckpointRecord(dump(bare, serde), dump(metadata, serde), parent_id, present)
        change.fields[place.record] = pack_record(record, self.envelope, place.record)
        if isinstance(run_id := metadata.get("run_id"), str):
            member = keys.join(keys.RUN, run_id, place.ns, place.checkpoint_id)
            change.members.append(member)
        change.new_fields[keys.HEAD] = pack_head(_now_ms())
        await self.batcher.submit(place.thread_id, change, fence)

    async def put_writes(
        self,
        place: Place,
        writes: Sequence[tuple[str, object]],
        task_id: str,
        task_path: str,
        serde: SerializerProtocol,
        fence: Fence | None,
    ) -> None:
        """Store what a task wrote, before the super-step that it belongs to is complete."""
        change, cells, now = Change(), [], time.time_ns()
        for position, (channel, value) in enumerate(writes):
            cell, parts = lay_out(value, serde, self.digests)
            change.parts |= parts
            index = WRITES_IDX_MAP.get(channel, position)
            if index >= 0:
                cells.append((index, channel, cell))
                continue
            # An error, interrupt or resume replaces the one before.
            name = place.writes(task_id, index)
            alone = Writes(now, task_path, [(index, channel, cell)])
            change.fields[name] = pack_writes(alone, self.envelope, name)
            change.members.append(name)
        if cells:
            # A result never replaces one that is there.
            name = place.writes(task_id, len(cells))
            together = Writes(now, task_path, cells)
            change.new_fields[name] = pack_writes(together, self.envelope, name)
            change.members.append(name)
        await self.batcher.submit(place.thread_id, change, fence)

    async def apply(self, thread_id: str, change: Change, fence: Fence | None) -> None:
        """Apply a change, sending only the parts that the server does not hold."""
        thread = self.keyspace.thread(thread_id)
        held = [digest for digest in change.parts if self.ledger.has(thread.data, digest)]
        if change.is_checkpoint and self.store.is_cluster:
            await self._register(thread_id)
        commands = await self._commands(thread_id, change, change.parts.keys() - set(held))
        needed = [keys.part(digest) for digest in held]
        if not await self.store.write(thread, commands, fence, needed):
            # One was removed. Nothing is stored yet: a checkpoint must not be seen without it.
            commands = await self._commands(thread_id, change, change.parts)
            await self.store.write(thread, commands, fence)
        self.ledger.add(thread.data, change.parts)

    async def _commands(
        self, thread_id: str, change: Change, digests: Collection[bytes]
    ) -> list[Command]:
        thread = self.keyspace.thread(thread_id)
        stamp = b"%d %s" % (_now_ms(), os.urandom(4).hex().encode())
        pairs: list[bytes] = [keys.UPDATED, stamp]
        for name, blob in change.fields.items():
            pairs += (name, blob)
        bodies = {keys.part(digest): change.parts[digest] for digest in digests}
        if sum(map(len, bodies.values())) < ELSEWHERE_FROM:
            pairs += self._wrapped(bodies)
        else:
            # zstd and AES let other threads run: a large state does not hold up the loop.
            pairs += await asyncio.to_thread(self._wrapped, bodies)
        commands: list[Command] = [("HSET", thread.data, *chunk) for chunk in keys.chunks(pairs)]
        commands += [
            ("HSETNX", thread.data, name, blob) for name, blob in change.new_fields.items()
        ]
        scored = [item for member in (*change.members, *bodies) for item in (b"0", member)]
        commands += [("ZADD", thread.index, *chunk) for chunk in keys.chunks(scored)]
        commands += expiry(thread, self.ttl_s)
        if change.is_checkpoint and not self.store.is_cluster:
            commands.append(registration(self.keyspace, thread_id))
        return commands

    def _wrapped(self, bodies: Mapping[bytes, bytes]) -> list[bytes]:
        return [
            item for name, body in bodies.items() for item in (name, self.envelope.wrap(body, name))
        ]

    async def _register(self, thread_id: str) -> None:
        now = time.monotonic()
        if now - self.registered.get(thread_id, -REGISTER_EVERY_S) < REGISTER_EVERY_S:
            return
        # Before the thread is written: an entry without a thread is harmless, the reverse is lost.
        await self.store.one(*registration(self.keyspace, thread_id))
        self.registered = {
            name: at for name, at in self.registered.items() if now - at < REGISTER_EVERY_S
        }
        self.registered[thread_id] = now


def registration(keyspace: Keyspace, thread_id: str) -> Command:
    """Make the command that lists a thread as just written."""
    return ("ZADD", keyspace.registry, _now_ms(), keys.encode(thread_id))


def expiry(thread: ThreadKeys, ttl_s: float | None) -> list[Command]:
    """Make the commands that let a thread live for another `ttl_s` seconds."""
    if ttl_s is None:
        return []
    # Both keys at once, so that nothing of a live thread expires before the rest.
    return [("PEXPIRE", key, int(ttl_s * 1000)) for key in (thread.data, thread.index)]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
