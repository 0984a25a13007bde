"""Removes what is no longer needed: old checkpoints, the checkpoints of a run.

A thread is rewritten by mark and sweep: choose the checkpoints that stay, read which values,
writes and parts they refer to, remove every other field. The removal is applied only if nothing
was written to the thread since the reading began, so a run that goes on meanwhile loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.envelope import Envelope
from pdr_checkpoints.errors import StoreConfigError
from pdr_checkpoints.keys import Keyspace
from pdr_checkpoints.reader import place_of
from pdr_checkpoints.records import (
    CheckpointRecord,
    Place,
    check_head,
    load,
    references,
    unpack_cell,
    unpack_record,
    unpack_writes,
)
from pdr_checkpoints.store import Command, Fence, Store
from pdr_checkpoints.threads import unlist

Strategy = Literal["keep_latest", "inspection", "delete"]
STRATEGIES: Final = ("keep_latest", "inspection", "delete")
DELTA_COUNTERS: Final = "counters_since_delta_snapshot"
"""Metadata key of checkpoints whose delta channels are rebuilt from the writes of ancestors."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of a thread."""

    records: frozenset[Place]
    writes_of: frozenset[Place]
    """Checkpoints whose pending writes stay."""


Snapshot = Mapping[Place, CheckpointRecord]
Choice = Callable[[Snapshot], Kept]


def choose(strategy: str, keep: int, serde: SerializerProtocol) -> Choice:
    """Give the rule of a strategy.

    `keep_latest` keeps the last `keep` checkpoints of every namespace. `inspection` keeps every
    checkpoint and value, so that a finished run can be looked at and forked, but of the pending
    writes only those of each namespace's latest checkpoint, which resuming needs.
    """
    if strategy not in STRATEGIES:
        raise StoreConfigError(f"prune strategy is {strategy!r}, it can be {', '.join(STRATEGIES)}")
    if keep < 1:
        raise StoreConfigError(f"prune keeps {keep} checkpoints, it must keep at least 1")

    def rule(snapshot: Snapshot) -> Kept:
        latest = _latest(snapshot, keep)
        with_ancestors = latest | _delta_ancestors(latest, snapshot, serde)
        if strategy == "keep_latest":
            return Kept(with_ancestors, with_ancestors)
        everything = frozenset(snapshot)
        return Kept(everything, with_ancestors | _delta_ancestors(everything, snapshot, serde))

    return rule


@dataclass(frozen=True, slots=True)
class Pruner:
    """Sweeps threads of one store."""

    store: Store
    keyspace: Keyspace
    envelope: Envelope
    serde: SerializerProtocol

    async def prune(self, thread_id: str, rule: Choice, fence: Fence | None) -> None:
        """Remove from a thread all that a rule does not keep.

        Raises:
            ThreadContendedError: The thread was written to all the time.
        """
        thread = self.keyspace.thread(thread_id)

        async def plan() -> list[Command]:
            return await self._plan(thread_id, rule)

        await self.store.swap(thread_id, thread, plan, fence)
        if not await self.store.one("EXISTS", thread.data):
            await unlist(self.store, self.keyspace, thread_id)

    async def _plan(self, thread_id: str, rule: Choice) -> list[Command]:
        thread = self.keyspace.thread(thread_id)
        head, members, names = await self.store.read(
            [
                ("HGET", thread.data, keys.HEAD),
                ("ZRANGE", thread.index, 0, -1),
                ("HKEYS", thread.data),
            ]
        )
        check_head(head, thread_id)
        records = [member for member in members if member[:1] == keys.RECORD]
        blobs = await self._fetch(thread.data, records)
        snapshot = {
            place_of(thread_id, name): unpack_record(blob, self.envelope, name)
            for name, blob in blobs.items()
        }
        kept = rule(snapshot)
        if not kept.records:
            return [("UNLINK", thread.data, thread.index)]
        stays = _members_that_stay(members, thread_id, snapshot, kept)
        live = await self._live_fields(thread.data, stays, snapshot, kept)
        dead = [name for name in names if name not in live]
        gone = [member for member in members if member not in stays and member not in live]
        commands: list[Command] = [("HDEL", thread.data, *part) for part in keys.chunks(dead)]
        return commands + [("ZREM", thread.index, *part) for part in keys.chunks(gone)]

    async def _live_fields(
        self, data_key: str, stays: set[bytes], snapshot: Snapshot, kept: Kept
    ) -> set[bytes]:
        """Name every field that the kept checkpoints refer to."""
        cells = set()
        for place in kept.records:
            record = snapshot[place]
            # dict[str, Any]: a checkpoint without its values.
            bare = cast(dict[str, Any], load(record.checkpoint, self.serde, place.described))
            versions = bare["channel_versions"]
            cells |= {place.cell(channel, versions[channel]) for channel in record.channels}
        writes = [member for member in stays if member[:1] == keys.WRITE]
        live = {keys.HEAD, keys.UPDATED, *cells, *stays}
        for name, blob in (await self._fetch(data_key, [*cells, *writes])).items():
            if name[:1] == keys.WRITE:
                found = [cell for *_, cell in unpack_writes(blob, self.envelope, name).cells]
            else:
                found = [unpack_cell(blob, self.envelope, name)]
            live |= {keys.part(digest) for cell in found for digest in references(cell)}
        return live

    async def _fetch(self, data_key: str, names: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for chunk in keys.chunks(names):
            blobs = await self.store.one("HMGET", data_key, *chunk)
            pairs = zip(chunk, blobs, strict=True)
            found |= {name: blob for name, blob in pairs if blob is not None}
        return found


async def checkpoints_of_run(
    store: Store, keyspace: Keyspace, thread_id: str, run_ids: Sequence[str]
) -> frozenset[Place]:
    """Find what runs made in a thread, from its index alone."""
    index = keyspace.thread(thread_id).index
    ranges = [keys.below(keys.RUN, run_id) for run_id in run_ids]
    found = await store.read([("ZRANGEBYLEX", index, low, high) for low, high in ranges])
    places = set()
    for member in (member for members in found for member in members):
        _, ns, checkpoint_id = keys.split(member)
        places.add(Place(thread_id, ns, checkpoint_id))
    return frozenset(places)


def all_but(removed: frozenset[Place]) -> Choice:
    """Give the rule that keeps everything else."""

    def rule(snapshot: Snapshot) -> Kept:
        left = frozenset(snapshot) - removed
        return Kept(left, left)

    return rule


def _latest(snapshot: Snapshot, keep: int) -> frozenset[Place]:
    by_namespace: dict[str, list[Place]] = {}
    for place in sorted(snapshot, key=lambda place: place.checkpoint_id, reverse=True):
        by_namespace.setdefault(place.ns, []).append(place)
    return frozenset(place for places in by_namespace.values() for place in places[:keep])


def _delta_ancestors(
    places: frozenset[Place], snapshot: Snapshot, serde: SerializerProtocol
) -> frozenset[Place]:
    """Find the ancestors from which delta channels are rebuilt.

    A delta channel stores its value now and then; in between, it is its last stored value plus
    the writes of every checkpoint since. Removing one of those would empty it without an error.
    """
    needed: set[Place] = set()
    for place in places:
        # dict[str, Any]: metadata, whose keys are the caller's.
        here = f"metadata of {place.described}"
        metadata = cast(dict[str, Any], load(snapshot[place].metadata, serde, here))
        missing = set(metadata.get(DELTA_COUNTERS) or ()) - set(snapshot[place].channels)
        parent_id = snapshot[place].parent_id
        while missing and parent_id is not None:
            ancestor = Place(place.thread_id, place.ns, parent_id)
            if ancestor not in snapshot:
                break
            needed.add(ancestor)
            missing -= set(snapshot[ancestor].channels)
            parent_id = snapshot[ancestor].parent_id
    return frozenset(needed)


def _members_that_stay(
    members: Sequence[bytes], thread_id: str, snapshot: Snapshot, kept: Kept
) -> set[bytes]:
    newest: dict[str, str] = {}
    for place in snapshot:
        newest[place.ns] = max(newest.get(place.ns, ""), place.checkpoint_id)
    stays = set()
    for member in members:
        if member[:1] == keys.PART:
            continue
        names = keys.split(member)
        is_run = member[:1] == keys.RUN
        place = Place(thread_id, *(names[1:3] if is_run else names[:2]))
        if member[:1] != keys.WRITE:
            stay = place in kept.records
        else:
            # A pending write may reach the server before its checkpoint does.
            early = place not in snapshot and place.checkpoint_id > newest.get(place.ns, "")
            stay = early or place in kept.writes_of
        if stay:
            stays.add(member)
    return stays
