"""Removes what is no longer needed: old checkpoints, the checkpoints of a run.

A thread is rewritten by mark and sweep: choose the checkpoints that stay, read which values, writes
and parts they refer to, remove every other field. The removal is applied only if nothing was
written to the thread since the reading began, so a run that goes on meanwhile loses nothing.

A large thread is read in pages and rewritten in steps, records first. One that is cut short in
between shows fewer checkpoints, all of them whole, and the next pruning removes the rest.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Final

from langgraph.checkpoint.serde.base import SerializerProtocol

from pdr_checkpoints import keys
from pdr_checkpoints.delta import delta_ancestors
from pdr_checkpoints.errors import StoreConfigError
from pdr_checkpoints.records import (
    CheckpointRecord,
    Place,
    Writes,
    check_head,
    references,
    unpack_cell,
)
from pdr_checkpoints.registry import forget
from pdr_checkpoints.serde import Allowance
from pdr_checkpoints.store import Command, chunks
from pdr_checkpoints.threads import ThreadMethods, field_names

STRATEGIES: Final = ("keep_latest", "inspection", "delete")


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of a thread."""

    records: frozenset[Place]
    writes_of: frozenset[Place]
    """Checkpoints whose pending writes stay."""


Snapshot = Mapping[Place, CheckpointRecord]
"""All checkpoints of a thread."""
Rule = Callable[[Snapshot], Kept]
"""Chooses what stays."""


class RetentionMethods(ThreadMethods):
    """The methods of a saver that remove old checkpoints and those of a run."""

    async def aprune(
        self, thread_ids: Sequence[str], *, strategy: str = "keep_latest", keep: int = 1
    ) -> None:
        """Remove old checkpoints.

        Args:
            thread_ids: Threads to prune; those without checkpoints are passed over.
            strategy: `keep_latest` keeps the last `keep` checkpoints of every namespace.
                `inspection` keeps every checkpoint and value, so that a finished run can be looked
                at and forked; of the pending writes it keeps those of each namespace's latest
                checkpoint, which resuming needs. `delete` keeps nothing.
            keep: Checkpoints per namespace that `keep_latest` keeps.

        Raises:
            ThreadContendedError: A run kept writing to the thread.
        """
        rule = _rule(strategy, keep, self.serde, self._session.envelope.allowance)
        for thread_id in map(str, thread_ids):
            if strategy == "delete":
                await self.adelete_thread(thread_id)
            else:
                await self._prune(thread_id, rule)

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove what the given runs stored, in whatever thread.

        What rebuilds a delta channel of a later run stays, or its value would change.
        """
        ranges = [keys.below(keys.RUN, run_id) for run_id in run_ids]
        if not ranges:
            return
        async for thread_id in self.thread_ids():
            index = self._store.thread(thread_id).index
            first = await self._store.pipeline(
                [("ZRANGEBYLEX", index, low, high, "LIMIT", 0, 1) for low, high in ranges]
            )
            names = [
                keys.split(member)[1:]
                for (low, high), some in zip(ranges, first, strict=True)
                if some
                for member in await self._store.members(index, low, high)
            ]
            if names:
                removed = {Place(thread_id, *name) for name in names if len(name) == 2}
                allowance = self._session.envelope.allowance
                await self._prune(thread_id, _all_but(removed, self.serde, allowance))

    async def _prune(self, thread_id: str, rule: Rule) -> None:
        """Remove from a thread all that a rule does not keep."""
        removal = partial(self._removal, thread_id, rule)
        await self._store.swap(thread_id, removal, self._session.leases.fence(thread_id))
        await forget(self._store, thread_id, self.options.ttl_s)

    async def _removal(self, thread_id: str, rule: Rule) -> list[Command]:
        """Make the commands that remove all that the rule does not keep."""
        thread, envelope = self._store.thread(thread_id), self._session.envelope.of(thread_id)
        check_head(await self._store.call("HGET", thread.data, keys.HEAD), thread_id)
        members = await self._store.members(thread.index)
        names = await field_names(self._store, thread_id)
        records = [member for member in members if member[:1] == keys.RECORD]
        allowance = envelope.envelope.allowance()
        snapshot = {}
        for name, blob in (await self._fetch(thread.data, records)).items():
            record = CheckpointRecord.unpack(blob, envelope, name)
            # All records are held at once, so only their bytes are kept.
            place = Place.of(thread_id, name)
            allowance.take(len(record.checkpoint) + len(record.metadata), place.described)
            snapshot[place] = record
        kept = rule(snapshot)
        if not kept.records:
            return [("UNLINK", thread.data, thread.index)]
        stays = _members_that_stay(members, thread_id, snapshot, kept)
        live = await self._live_fields(thread_id, stays, snapshot, kept)
        dead = names - live
        gone = {member for member in members if member not in stays and member not in live}
        doomed = sorted(dead | gone)
        commands: list[Command] = []
        # A record and its member go together, else a reader would miss one of them.
        for is_record in (True, False):
            kind = [name for name in doomed if (name[:1] == keys.RECORD) is is_record]
            for chunk in chunks(kind):
                for command, key, of in (("ZREM", thread.index, gone), ("HDEL", thread.data, dead)):
                    if some := [name for name in chunk if name in of]:
                        commands.append((command, key, *some))
        return commands

    async def _live_fields(
        self, thread_id: str, stays: set[bytes], snapshot: Snapshot, kept: Kept
    ) -> set[bytes]:
        """Return every field that the kept checkpoints refer to."""
        data_key = self._store.thread(thread_id).data
        envelope, cells = self._session.envelope.of(thread_id), set()
        allowance = envelope.envelope.allowance
        for place in kept.records:
            record = snapshot[place]
            versions = record.bare(self.serde, place, allowance())["channel_versions"]
            cells |= {place.cell(channel, versions[channel]) for channel in record.channels}
        writes = [member for member in stays if member[:1] == keys.WRITE]
        live = {keys.HEAD, keys.UPDATED, *cells, *stays}
        for name, blob in (await self._fetch(data_key, [*cells, *writes])).items():
            if name[:1] == keys.WRITE:
                writes_of = Writes.unpack(blob, envelope, name, allowance())
                found = [cell for *_, cell in writes_of.cells]
            else:
                found = [unpack_cell(blob, envelope, name, allowance())]
            live |= {keys.part(digest) for cell in found for digest in references(cell)}
        return live

    async def _fetch(self, data_key: str, names: Sequence[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for chunk in chunks(names):
            blobs = await self._store.call("HMGET", data_key, *chunk)
            pairs = zip(chunk, blobs, strict=True)
            found |= {name: blob for name, blob in pairs if blob is not None}
        return found


def _rule(
    strategy: str, keep: int, serde: SerializerProtocol, allowance: Callable[[], Allowance]
) -> Rule:
    if strategy not in STRATEGIES:
        raise StoreConfigError(f"prune strategy is {strategy!r}, it can be {', '.join(STRATEGIES)}")
    if keep < 1:
        raise StoreConfigError(f"prune keeps {keep} checkpoints, it must keep at least 1")

    def rule(snapshot: Snapshot) -> Kept:
        latest = _latest(snapshot, keep)
        with_ancestors = latest | delta_ancestors(latest, snapshot, serde, allowance)
        if strategy == "keep_latest":
            return Kept(with_ancestors, with_ancestors)
        everything = frozenset(snapshot)
        needed = delta_ancestors(everything, snapshot, serde, allowance)
        return Kept(everything, with_ancestors | needed)

    return rule


def _all_but(
    removed: Set[Place], serde: SerializerProtocol, allowance: Callable[[], Allowance]
) -> Rule:
    def rule(snapshot: Snapshot) -> Kept:
        left = frozenset(snapshot) - removed
        left |= delta_ancestors(left, snapshot, serde, allowance)
        return Kept(left, left)

    return rule


def _latest(snapshot: Snapshot, keep: int) -> frozenset[Place]:
    by_namespace: dict[str, list[Place]] = {}
    for place in sorted(snapshot, key=lambda place: place.checkpoint_id, reverse=True):
        by_namespace.setdefault(place.ns, []).append(place)
    return frozenset(place for places in by_namespace.values() for place in places[:keep])


def _members_that_stay(
    members: Sequence[bytes], thread_id: str, snapshot: Snapshot, kept: Kept
) -> set[bytes]:
    """Return the members of the index that a rule keeps, except parts."""
    newest: dict[str, str] = {}
    for place in snapshot:
        newest[place.ns] = max(newest.get(place.ns, ""), place.checkpoint_id)

    def stays(member: bytes) -> bool:
        kind, names = member[:1], keys.split(member)
        names = names[1:3] if kind == keys.RUN else names[:2]
        if len(names) < 2:
            return False  # nothing that we wrote
        place = Place(thread_id, *names)
        if kind != keys.WRITE:
            return place in kept.records
        # A pending write may reach the server before its checkpoint does.
        early = place not in snapshot and place.checkpoint_id > newest.get(place.ns, "")
        return early or place in kept.writes_of

    return {member for member in members if member[:1] != keys.PART and stays(member)}
