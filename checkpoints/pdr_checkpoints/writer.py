"""Writes checkpoints and pending writes in one round trip each, or several together in one.

The writer remembers which parts the server holds, so that a draft is sent once. Only what the
server acknowledged counts, and it may be gone since: a crash without an append-only file, a prune
or a deletion elsewhere removes it. So a write that relies on stored parts is applied only if each
is still there; otherwise all are sent again.

A checkpoint brings the channels that changed since its parent. If the server has lost the parent (a
failover, a restart without an append-only file), the checkpoint is stored with all its channels: it
can be read and resumed from, and a warning says what was lost.
"""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from langgraph.checkpoint.base import WRITES_IDX_MAP, ChannelVersions, Checkpoint
from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.batch import Change, CommitBatcher, merge
from pdr_checkpoints.delta import DELTA_COUNTERS
from pdr_checkpoints.envelope import Envelope
from pdr_checkpoints.errors import CheckpointLostError
from pdr_checkpoints.keys import ThreadKeys
from pdr_checkpoints.lease import Leases
from pdr_checkpoints.records import (
    CheckpointRecord,
    Digests,
    Place,
    Writes,
    dump,
    lay_out,
    pack_head,
)
from pdr_checkpoints.registry import registration
from pdr_checkpoints.store import Command, Fence, Store, chunks

logger = logging.getLogger(__name__)

CAPACITY: Final = 32_768
"""Digests remembered, about 6 MB; the least recently used are forgotten, and sent again."""
REGISTER_EVERY_S: Final = 30.0
"""On Cluster the registry is in another slot: refresh a thread's entry at most this often."""
ELSEWHERE_FROM: Final = 1_000_000
"""From this many bytes on, parts are compressed in a thread; 1 MB takes about 4 ms. Less is not
worth it: while the loop is busy, the interpreter lets another thread in only every 5 ms."""


class PartLedger:
    """Parts that the server acknowledged, by the key of their thread."""

    def __init__(self) -> None:
        self._stored: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    def has(self, data_key: str, digest: bytes) -> bool:
        """Whether the server acknowledged a part; if so, it is remembered for longer."""
        if (data_key, digest) not in self._stored:
            return False
        self._stored.move_to_end((data_key, digest))
        return True

    def add(self, data_key: str, digests: Iterable[bytes]) -> None:
        """Note parts that the server acknowledged."""
        self._stored.update(((data_key, digest), None) for digest in digests)
        while len(self._stored) > CAPACITY:
            self._stored.popitem(last=False)


class Writer:
    """Turns LangGraph's calls into changes and applies them."""

    def __init__(
        self,
        store: Store,
        envelope: Envelope,
        leases: Leases,
        ttl_s: float | None,
        sweep: Callable[[], None],
    ) -> None:
        self.store = store
        self.envelope = envelope
        self.leases = leases
        self.ttl_s = ttl_s
        """Seconds that a thread lives after its last write; None keeps it."""
        self._sweep = sweep
        """Asks for a sweep of the registry, which is made now and then."""
        self._ledger = PartLedger()
        self._registered: dict[str, float] = {}
        """Clock of the latest entry of each thread in the registry, on Cluster."""
        self._digests = Digests(envelope.digest)
        self.batcher = CommitBatcher(self._apply)

    async def put(
        self,
        place: Place,
        parent_id: str | None,
        checkpoint: Checkpoint,
        metadata: Mapping[str, object],
        new_versions: ChannelVersions,
        serde: SerializerProtocol,
    ) -> None:
        """Store a checkpoint and the values of the channels that changed."""
        values = checkpoint["channel_values"]
        change = self._cells(place, checkpoint, new_versions, serde)
        change.members.append(place.record)
        change.is_checkpoint = True
        if parent_id is not None:
            change.builds_on.append(Place(place.thread_id, place.ns, parent_id).record)
            change.rest.append(
                partial(self._rest, place, parent_id, checkpoint, metadata, new_versions, serde)
            )
        bare = {key: value for key, value in checkpoint.items() if key != "channel_values"}
        present = [name for name in values if name in checkpoint["channel_versions"]]
        record = CheckpointRecord(dump(bare, serde), dump(metadata, serde), parent_id, present)
        change.fields[place.record] = record.pack(self.envelope.of(place.thread_id), place.record)
        if isinstance(run_id := metadata.get("run_id"), str):
            member = keys.join(keys.RUN, run_id, place.ns, place.checkpoint_id)
            change.members.append(member)
        change.new_fields[keys.HEAD] = pack_head(_now_ms())
        await self.batcher.submit(place.thread_id, change, self.leases.fence(place.thread_id))

    def _cells(
        self,
        place: Place,
        checkpoint: Checkpoint,
        versions: ChannelVersions,
        serde: SerializerProtocol,
    ) -> Change:
        """Lay out the values that some channels have at the given versions."""
        change = Change()
        for channel, version in versions.items():
            if channel in checkpoint["channel_values"]:
                name = place.cell(channel, version)
                value = checkpoint["channel_values"][channel]
                cell, parts = lay_out(value, serde, self._digests)
                change.fields[name] = self.envelope.of(place.thread_id).pack(cell, name)
                change.parts |= parts
        return change

    def _rest(
        self,
        place: Place,
        parent_id: str,
        checkpoint: Checkpoint,
        metadata: Mapping[str, object],
        new_versions: ChannelVersions,
        serde: SerializerProtocol,
    ) -> Change:
        """Lay out the channels that have not changed since a parent that is lost.

        Raises:
            CheckpointLostError: A delta channel would be rebuilt from the parent.
        """
        counters, versions = metadata.get(DELTA_COUNTERS), checkpoint["channel_versions"]
        written = set(counters if isinstance(counters, Mapping) else ()) & set(versions)
        if missing := written - set(checkpoint["channel_values"]):
            raise CheckpointLostError(place.thread_id, parent_id, ", ".join(sorted(missing)))
        logger.warning(
            "saver.lost thread=%s checkpoint=%s: the server has lost it (a failover, a restart "
            "without an append-only file, or a deletion); the next one is stored whole",
            place.thread_id,
            parent_id,
        )
        unchanged = {name: versions[name] for name in versions.keys() - new_versions.keys()}
        return self._cells(place, checkpoint, unchanged, serde)

    async def put_writes(
        self,
        place: Place,
        writes: Sequence[tuple[str, object]],
        task_id: str,
        task_path: str,
        serde: SerializerProtocol,
    ) -> None:
        """Store what a task wrote, before its super-step is complete."""
        change, cells, now = Change(), [], time.time_ns()
        for position, (channel, value) in enumerate(writes):
            cell, parts = lay_out(value, serde, self._digests)
            change.parts |= parts
            index = WRITES_IDX_MAP.get(channel, position)
            if index >= 0:
                cells.append((index, channel, cell))
                continue
            # An error, interrupt or resume replaces the one before.
            name = place.writes(task_id, index)
            alone = Writes(now, task_path, [(index, channel, cell)])
            change.fields[name] = alone.pack(self.envelope.of(place.thread_id), name)
            change.members.append(name)
        if cells:
            # A result never replaces one that is there.
            name = place.writes(task_id, len(cells))
            together = Writes(now, task_path, cells)
            change.new_fields[name] = together.pack(self.envelope.of(place.thread_id), name)
            change.members.append(name)
        await self.batcher.submit(place.thread_id, change, self.leases.fence(place.thread_id))

    async def _apply(self, thread_id: str, change: Change, fence: Fence | None) -> None:
        """Apply a change, sending only the parts that the server does not hold."""
        data_key = self.store.thread(thread_id).data
        held = [digest for digest in change.parts if self._ledger.has(data_key, digest)]
        if change.is_checkpoint and self.store.connection.is_cluster:
            await self._register(thread_id)
        commands = await self._commands(thread_id, change, change.parts.keys() - set(held))
        builds_on = [name for name in change.builds_on if name not in change.members]
        needed = [*builds_on, *(keys.part(digest) for digest in held)]
        if not await self.store.write(thread_id, commands, fence, needed):
            # A member was removed. Nothing is stored yet: a checkpoint must not be seen without it.
            if builds_on and None in await self._scores(thread_id, builds_on):
                change = merge([change, *(make() for make in change.rest)])
            commands = await self._commands(thread_id, change, change.parts)
            await self.store.write(thread_id, commands, fence)
        self._ledger.add(data_key, change.parts)
        if change.is_checkpoint:
            self._sweep()

    async def _scores(self, thread_id: str, members: Sequence[bytes]) -> list[object]:
        index = self.store.thread(thread_id).index
        scores: list[object] = await self.store.call("ZMSCORE", index, *members)
        return scores

    async def _commands(
        self, thread_id: str, change: Change, digests: Collection[bytes]
    ) -> list[Command]:
        thread = self.store.thread(thread_id)
        stamp = b"%d %s" % (_now_ms(), os.urandom(4).hex().encode())
        pairs: list[bytes] = [keys.UPDATED, stamp]
        for name, blob in change.fields.items():
            pairs += (name, blob)
        bodies = {keys.part(digest): change.parts[digest] for digest in digests}
        if sum(map(len, bodies.values())) < ELSEWHERE_FROM:
            pairs += self._wrapped(thread_id, bodies)
        else:
            # zstd and AES let other threads run: a large state does not hold up the loop.
            pairs += await asyncio.to_thread(self._wrapped, thread_id, bodies)
        commands: list[Command] = [("HSET", thread.data, *chunk) for chunk in chunks(pairs)]
        commands += [
            ("HSETNX", thread.data, name, blob) for name, blob in change.new_fields.items()
        ]
        commands += listing(thread, (*change.members, *bodies), self.ttl_s)
        if change.is_checkpoint and not self.store.connection.is_cluster:
            commands += registration(self.store, thread_id, self.ttl_s)
        return commands

    def _wrapped(self, thread_id: str, bodies: Mapping[bytes, bytes]) -> list[bytes]:
        envelope = self.envelope.of(thread_id)
        return [item for name, body in bodies.items() for item in (name, envelope.wrap(body, name))]

    async def _register(self, thread_id: str) -> None:
        now = time.monotonic()
        if now - self._registered.get(thread_id, -REGISTER_EVERY_S) < REGISTER_EVERY_S:
            return
        # Before the thread is written: an entry without a thread is harmless, but a thread without
        # an entry is lost.
        await self.store.pipeline(registration(self.store, thread_id, self.ttl_s))
        self._registered = {
            name: at for name, at in self._registered.items() if now - at < REGISTER_EVERY_S
        }
        self._registered[thread_id] = now


def listing(thread: ThreadKeys, members: Sequence[bytes], ttl_s: float | None) -> list[Command]:
    """Make the commands that add members to the index and let the thread live for `ttl_s` more."""
    scored = [item for member in members for item in (b"0", member)]
    commands: list[Command] = [("ZADD", thread.index, *chunk) for chunk in chunks(scored)]
    if ttl_s is not None:
        # Both keys at once, so that nothing of a live thread expires before the rest.
        commands += [("PEXPIRE", key, int(ttl_s * 1000)) for key in (thread.data, thread.index)]
    return commands


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
