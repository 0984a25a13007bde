"""The registry: which threads there are, and when they expire.

Two sorted sets hold thread ids: one by the time of the last checkpoint, for lists, one by the time
of expiry, for those that expire. Redis removes an expired thread, but not its entries. So whoever
opens the store or writes to it sweeps: entries that are due are looked up and, if the thread is
gone, removed. That goes on beside the run, a page at a time, until nothing is due.

A release that knew no expiries, or one that still runs, leaves entries without them. They are found
by a walk through the whole registry, by one process once a day.

A thread that is copied or imported arrives in the registry as a whole.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from pdr_checkpoints import keys
from pdr_checkpoints.connect import Argument
from pdr_checkpoints.errors import CorruptCheckpointError, SaverError, ThreadTakenError
from pdr_checkpoints.store import STEP, Command, Store, StoreRetry

logger = logging.getLogger(__name__)

PAGE: Final = 100
"""Entries looked at in a round trip: about a millisecond of the server's time."""
SWEEP_EVERY_S: Final = 1.0
"""A process that writes looks this often whether entries are due."""
WALK_EVERY_S: Final = 24 * 3600
WALKING_MS: Final = 60 * 1000
"""Another process walks if the one that began has not gone on for this long."""
CLUSTER_GRACE_MS: Final = 10 * 60 * 1000
"""In a cluster an entry is written before its thread, in another step: a young one is left."""
GONE, KEPT = -2, -1
"""Reply of PTTL for a key that does not exist, and for one that does not expire."""

SETTLE: Final = """
for at = 1, #ARGV, 3 do
  local member, expires = ARGV[at], tonumber(ARGV[at + 2])
  if expires >= 0 then
    redis.call('ZADD', KEYS[2], expires, member)
  elseif expires == -1 then
    redis.call('ZREM', KEYS[2], member)
  else
    local score = redis.call('ZSCORE', KEYS[1], member)
    if not score or tonumber(score) == tonumber(ARGV[at + 1]) then
      redis.call('ZREM', KEYS[1], member)
      redis.call('ZREM', KEYS[2], member)
    end
  end
end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('DEL', KEYS[3]) end
return redis.call('ZCARD', KEYS[1])
"""
"""Notes when threads expire, and removes those that are gone, by triples: thread, time of the last
checkpoint as it was seen, expiry (-1 never, -2 gone). One that has begun anew since then stays."""
ASIDE_MS: Final = 3600 * 1000
"""Keys that an unfinished import or copy leaves behind expire after an hour."""
SHOW: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('RENAME', KEYS[1], KEYS[2])
  redis.call('PERSIST', KEYS[2])
  if redis.call('EXISTS', KEYS[4]) == 1 then
    redis.call('UNLINK', KEYS[3])
    redis.call('RENAME', KEYS[4], KEYS[3])
    redis.call('PERSIST', KEYS[3])
  end
elseif redis.call('EXISTS', KEYS[4]) == 1 then
  return -1
else
  redis.call('ZUNIONSTORE', KEYS[2], 2, KEYS[2], KEYS[1])
  redis.call('UNLINK', KEYS[1])
end
if ARGV[1] ~= '' then
  redis.call('PEXPIRE', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[3], ARGV[1])
end
return 1
"""
"""Gives an index that was written aside the name of its thread's index. Does so for the fields too,
which replace those that a killed import of an early release left. Returns 0 if nothing is aside,
and -1 if there are fields and the thread has begun meanwhile."""
AT_ONCE: Final = 1_000_000
"""Bytes of an arriving thread that are sent together."""
AT_MOST: Final = 64
"""Fields of an arriving thread that are sent together."""


def registration(
    store: Store, thread_id: str, ttl_s: float | None, *, since_ms: int = 0
) -> list[Command]:
    """Make the commands that list a thread as just written, to live for `ttl_s` more.

    The time that they note is after `since_ms`.
    """
    names, member = keys.registry_keys(store.prefix), keys.encode(thread_id)
    now = max(_now_ms(), since_ms + 1)
    commands: list[Command] = [("ZADD", names.threads, now, member)]
    if ttl_s is not None:
        commands.append(("ZADD", names.expiries, now + int(ttl_s * 1000), member))
    return commands


async def forget(store: Store, thread_id: str, ttl_s: float | None) -> None:
    """Remove the entries of a thread that was removed, unless it has begun anew."""
    names, member = keys.registry_keys(store.prefix), keys.encode(thread_id)
    data_key = store.thread(thread_id).data
    if await store.call("EXISTS", data_key):
        return
    await store.pipeline([("ZREM", names.threads, member), ("ZREM", names.expiries, member)])
    # It may have begun meanwhile.
    if await store.call("EXISTS", data_key):
        await store.pipeline(registration(store, thread_id, ttl_s))


async def sweep(store: Store) -> None:
    """Remove the entries of all threads that have expired."""
    expiries = keys.registry_keys(store.prefix).expiries
    due = [b""]
    while due:
        now = _now_ms()
        due = await store.call("ZRANGEBYSCORE", expiries, "-inf", now, "LIMIT", 0, PAGE)
        await settle(store, due)


async def walk(store: Store) -> None:
    """Look at every entry, unless somebody did so within a day."""
    names = keys.registry_keys(store.prefix)
    if not await store.call("SET", names.walked, "begun", "NX", "PX", WALKING_MS):
        return
    first = 0
    while members := await store.call("ZRANGE", names.threads, first, first + PAGE - 1):
        # Removed entries move the following ones up.
        first += len(members) - await settle(store, members)
        await store.call("PEXPIRE", names.walked, WALKING_MS)
    if first:
        await store.call("SET", names.walked, "ended", "EX", WALK_EVERY_S)
    else:
        await store.call("UNLINK", names.walked)


async def settle(store: Store, members: Sequence[bytes]) -> int:
    """Look whether threads are still there; note their expiry, or remove their entries.

    Returns how many are gone.
    """
    if not members:
        return 0
    names = keys.registry_keys(store.prefix)
    threads = [store.thread(keys.decode(member)) for member in members]
    scores, *ttls_ms = await store.pipeline(
        [("ZMSCORE", names.threads, *members), *(("PTTL", thread.data) for thread in threads)]
    )
    now, num_gone, arguments = _now_ms(), 0, list[Argument]()
    for member, score, ttl_ms in zip(members, scores, ttls_ms, strict=True):
        seen = 0 if score is None else int(float(score))
        expires = now + ttl_ms if ttl_ms >= 0 else ttl_ms
        if ttl_ms == GONE and store.connection.is_cluster and now - seen < CLUSTER_GRACE_MS:
            expires = seen + CLUSTER_GRACE_MS
        num_gone += expires == GONE
        arguments += (member, seen, expires)
    await store.script(SETTLE, [names.threads, names.expiries, names.walked], arguments)
    return num_gone


@dataclass(slots=True)
class RegistrySweeper:
    """Sweeps beside the run: when the store is opened, and soon after it was written to."""

    store: Store
    swept: float = field(default_factory=time.monotonic)
    """Clock of the latest sweep, or of the beginning."""
    walked: float | None = None
    """Clock of the latest walk of this process; None before the first."""
    is_due: bool = False
    """Whether a sweep is under way, or will be in a moment."""

    def nudge(self, *, at_once: bool = False) -> None:
        """Sweep, `SWEEP_EVERY_S` after the latest sweep if not `at_once`."""
        if not self.is_due:
            self.is_due = True
            since = time.monotonic() - self.swept
            self.store.start(self._sweep(0.0 if at_once else max(0.0, SWEEP_EVERY_S - since)))

    async def settle(self, members: Sequence[bytes]) -> None:
        """Remove the entries of threads that are gone, if the server takes writes."""
        try:
            for first in range(0, len(members), PAGE):
                await settle(self._once, members[first : first + PAGE])
        except SaverError as error:
            logger.debug("registry.unswept error=%s", error)

    async def _sweep(self, pause_s: float) -> None:
        store = self._once
        try:
            await asyncio.sleep(pause_s)
            await sweep(store)
            if self.walked is None or time.monotonic() - self.walked > WALK_EVERY_S:
                self.walked = time.monotonic()
                await walk(store)
        except SaverError as error:
            # Whoever opens or writes next sweeps as well.
            logger.debug("registry.unswept error=%s", error)
        finally:
            self.swept, self.is_due = time.monotonic(), False

    @property
    def _once(self) -> Store:
        """The store, tried once: a run does not wait for a sweep, nor does it tell of an outage."""
        return replace(self.store, retry=StoreRetry(self.store.connection.where, 0.0))


class Arrival:
    """A thread on its way into the store: seen as a whole, or not at all.

    It is written under names of its own, which expire, and gets those of its thread at the end. So
    an import that is killed leaves nothing that is listed, and can be made again at once.
    """

    def __init__(self, store: Store, thread_id: str, ttl_s: float | None) -> None:
        self._store = store
        self._thread_id = thread_id
        self._ttl_s = ttl_s
        self._thread = store.thread(thread_id)
        aside = secrets.token_hex(4)
        self._data, self._index = f"{self._thread.data}:{aside}", f"{self._thread.index}:{aside}"
        self._aside = [self._data, self._index]
        self._fields: list[bytes] = []
        self._members: list[bytes] = []
        self._num_bytes = 0
        self._sent = time.monotonic()
        self.num_members = 0

    def join(self) -> None:
        """Write fields into the thread, which is there already; its checkpoints stay."""
        self._data = self._thread.data

    async def add_field(self, name: bytes, blob: bytes) -> None:
        """Take a field of the hash."""
        self._fields += (name, blob)
        self._num_bytes += len(name) + len(blob)
        if len(self._fields) >= 2 * AT_MOST or self._num_bytes >= AT_ONCE:
            await self._send()

    async def add_member(self, member: bytes) -> None:
        """Take a member of the index."""
        self._members += (b"0", member)
        self._num_bytes += len(member)
        self.num_members += 1
        if len(self._members) >= STEP or self._num_bytes >= AT_ONCE:
            await self._send()

    async def show(self) -> None:
        """Show the thread.

        Raises:
            ThreadTakenError: It has begun meanwhile.
            CorruptCheckpointError: It came so slowly that its beginning has expired.
        """
        await self._send()
        # Registered before it is shown, so that a kill leaves no thread without an entry. And
        # after, since a process that lists the threads meanwhile removes an entry without a thread.
        first = registration(self._store, self._thread_id, self._ttl_s)
        await self._store.pipeline(first)
        lives_ms = "" if self._ttl_s is None else int(self._ttl_s * 1000)
        names = [self._index, self._thread.index, self._thread.data, self._aside[0]]
        shown = await self._store.script(SHOW, names, [lives_ms], replicated=True)
        if shown < 0:
            raise ThreadTakenError(self._thread_id)
        (_, _, noted, _), *_ = first
        again = registration(self._store, self._thread_id, self._ttl_s, since_ms=int(noted))
        await self._store.pipeline(again)

    async def drop(self) -> None:
        """Remove what was not shown."""
        await self._store.call("UNLINK", *self._aside)

    async def _send(self) -> None:
        commands: list[Command] = []
        for name, command, items in (
            (self._data, "HSET", self._fields),
            (self._index, "ZADD", self._members),
        ):
            if items:
                commands.append((command, name, *items))
            if name in self._aside:
                commands.append(("PEXPIRE", name, ASIDE_MS))
        now = time.monotonic()
        if (now - self._sent) * 1000 > ASIDE_MS / 2:
            raise CorruptCheckpointError(f"thread {self._thread_id!r}", "it came too slowly")
        await self._store.pipeline(commands)
        self._fields, self._members, self._num_bytes, self._sent = [], [], 0, now


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
