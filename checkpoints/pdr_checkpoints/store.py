"""The one place that talks to Redis: reads, atomic writes, compare-and-set, retries.

Every write is one server-side script in one round trip, applied as a whole or not at all. A
transaction (MULTI/EXEC) cannot depend on what a key holds, as a write under a lease must.

While a server is away, operations are tried again for a bounded time. A server that is killed and
restarted refuses connections, then answers LOADING while it reads its append-only file; a failover
answers READONLY or CLUSTERDOWN for a moment; a full server answers OOM until there is room. Every
operation of the saver can be repeated without harm (`HSET`, `HSETNX`, `ZADD` and compare-and-set
scripts), so a lost reply is asked for again. What a server refuses for good is one sentence.

No command takes longer than a few milliseconds of the server's time, however large a thread is:
long data are read in pages (`members`) and removed in chunks.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from redis import exceptions

from pdr_checkpoints.connect import Argument, Connection, ReplicasMissingError, code_of
from pdr_checkpoints.errors import (
    OTHER_REFUSAL,
    REFUSALS,
    LeaseLostError,
    NotReplicatedError,
    SaverError,
    StoreConfigError,
    StoreRefusedError,
    StoreUnreachableError,
    ThreadContendedError,
)
from pdr_checkpoints.keys import UPDATED, ThreadKeys, thread_keys

T = TypeVar("T")
logger = logging.getLogger(__name__)

Command = tuple[Argument, ...]

AWAY: Final[tuple[type[Exception], ...]] = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.RedisClusterException,
    OSError,
)
"""No server answers."""
FAILURES: Final[tuple[type[Exception], ...]] = (
    *AWAY,
    exceptions.ResponseError,
    exceptions.ClusterError,
    exceptions.InvalidResponse,
    ReplicasMissingError,
)
"""Errors that are retried, or become a message; any other error is a defect."""
CREDENTIALS: Final = ("NOAUTH", "WRONGPASS")
OWN_ANSWERS: Final = ("STALELEASE", "CHANGED")
"""Error replies of the saver's own scripts."""
STEP: Final = 1010
"""Arguments that are applied at a time: two commands of 500 names, about a millisecond."""
PAGE: Final = 500
"""Members of an index that are read at a time: less than a millisecond."""
SWAP_TRIES: Final = 8

APPLY: Final = """
if ARGV[1] ~= '' then
  local held = redis.call('GET', KEYS[1])
  if held ~= ARGV[1] and (held or redis.call('GET', KEYS[4]) ~= ARGV[4]) then
    return redis.error_reply('STALELEASE')
  end
end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[2], ARGV[3]) ~= ARGV[2] then
  return redis.error_reply('CHANGED')
end
local at = 6 + tonumber(ARGV[5])
for first = 6, at - 1, 500 do
  local last = math.min(first + 499, at - 1)
  for _, score in ipairs(redis.call('ZMSCORE', KEYS[3], unpack(ARGV, first, last))) do
    if not score then return 0 end
  end
end
while at <= #ARGV do
  local size = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + size))
  at = at + size + 1
end
return 1
"""
"""Runs commands if the lease and the stamp of the last write are the given ones ('' is any) and the
index has the given members; returns 0 when it lacks one.

A lease that ran out while the server was down still counts until another was given out."""


@dataclass(slots=True)
class StoreRetry:
    """Exponential backoff with jitter, until a total time is spent.

    All operations of a store share one outage: its time counts once, not anew for each operation
    that follows the first, such as the release of a lease after a write that gave up.
    """

    where: str
    """Address of the server in messages."""
    total_s: float = 30.0
    """Give up when the server has been away for this long; 0 tries once."""
    first_s: float = 0.05
    """Pause after the first failure; each later one doubles it."""
    longest_s: float = 2.0
    """Bound on one pause."""
    away_since: float | None = None
    """Clock of the first failure of the outage; None while the server answers."""
    last_failure: float = 0.0
    """Clock of the latest failure."""
    was_reached: bool = False
    """Whether the server has ever answered."""

    async def __call__(
        self, operation: Callable[[], Awaitable[T]], total_s: float | None = None
    ) -> T:
        """Run an operation until it succeeds; `total_s` takes the place of the usual one.

        Raises:
            StoreUnreachableError: The server was away for `total_s` seconds.
            StoreRefusedError: It answered, and did not work for so long or for good.
            NotReplicatedError: Too few replicas confirmed a write for so long.
            StoreConfigError: The server refuses the credentials.
        """
        total_s = self.total_s if total_s is None else total_s
        started = time.monotonic()
        pause_s = self.first_s
        while True:
            try:
                result = await operation()
            except FAILURES as error:
                if any(answer in str(error) for answer in OWN_ANSWERS):
                    raise
                code = code_of(error)
                if code is not None and not REFUSALS.get(code, OTHER_REFUSAL).passes:
                    raise self._ended(error, code, 0.0) from error
                spent_s = self._failed(started, total_s, error)
                # Jitter: a hundred runs that lost one server must not return at the same moment.
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if spent_s + wait_s > total_s:
                    raise self._ended(error, code, spent_s) from error
                await asyncio.sleep(wait_s)
                pause_s = min(2 * pause_s, self.longest_s)
            else:
                self.away_since = None
                self.was_reached = True
                return result

    def _ended(self, error: Exception, code: str | None, spent_s: float) -> SaverError:
        """Make the error of an operation that is not tried again."""
        if isinstance(error, ReplicasMissingError):
            return NotReplicatedError(self.where, error.wanted, error.held, spent_s)
        if code is None:
            return StoreUnreachableError(self.where, spent_s, error)
        refused = StoreRefusedError(self.where, code, error)
        return StoreConfigError(str(refused)) if code in CREDENTIALS else refused

    def _failed(self, started: float, total_s: float, error: Exception) -> float:
        """Note a failed try and return the seconds that the server has been away."""
        # After so long without a try, it is not known whether the server was away all the time.
        if self.away_since is None or started - self.last_failure > total_s:
            self.away_since = started
            # For a server that never answered, the caller's error is enough.
            if self.was_reached and total_s > 0:
                logger.warning(
                    "store.retry where=%s for_s=%g: the server %s, trying again",
                    self.where,
                    total_s,
                    _trouble(error),
                )
        self.last_failure = time.monotonic()
        return self.last_failure - self.away_since


def _trouble(error: Exception) -> str:
    """Say what keeps a server from its work, after its name."""
    code = code_of(error)
    if code in REFUSALS:
        return REFUSALS[code].reason
    if isinstance(error, ReplicasMissingError):
        return f"had {error}"
    return f"does not answer ({error})"


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of a lease: a write is applied only while the lease key holds the value."""

    thread_id: str
    token: int
    value: bytes


@dataclass
class Store:
    """Commands on one connection pool, retried, in one event loop."""

    connection: Connection
    prefix: str
    """First part of every key."""
    retry: StoreRetry
    timeout_s: float
    """A reply that takes longer counts as a lost connection."""
    gate: asyncio.Semaphore
    """Bounds operations in flight, and so connections: redis-py's pools would raise."""
    wait_replicas: int = 0
    """Replicas that must confirm a write before it counts."""
    wait_ms: int = 1000
    """How long they are waited for, at each try."""
    pid: int | None = None
    """Process that the connections belong to; None before the first."""
    background: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks that run beside the callers; closing ends them."""

    def thread(self, thread_id: str) -> ThreadKeys:
        """Return the keys of a thread."""
        return thread_keys(self.prefix, thread_id)

    async def call(self, *command: Argument) -> Any:  # Any: a reply is what it is
        """Run one command."""
        return await self._try(lambda: self.connection.client.execute_command(*command))

    async def brief(self, command: Command, for_s: float) -> Any:  # Any: as above
        """Run one command, tried for `for_s` seconds; the replicas must confirm a `SET`."""
        counts = self.wait_replicas and command[0] == "SET"
        wait = (self.wait_replicas, self.wait_ms) if counts else None
        return await self._try(lambda: self.connection.exchange(command, wait), for_s)

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:  # Any: as above
        """Run commands in one round trip, not as a transaction."""

        async def exchange() -> list[Any]:
            # Any: redis-py types pipelines per client class; all have these methods.
            pipe: Any = self.connection.client.pipeline(transaction=False)
            async with pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies: list[Any] = await pipe.execute()
                return replies

        return await self._try(exchange)

    async def members(
        self, index: str, low: bytes = b"-", high: bytes = b"+", most: int | None = None
    ) -> list[bytes]:
        """Read the members of an index between two bounds, in order, a page at a time.

        `most` bounds how many; None reads all.
        """
        found: list[bytes] = []
        while most is None or len(found) < most:
            size = PAGE if most is None else min(PAGE, most - len(found))
            page: list[bytes] = await self.call("ZRANGEBYLEX", index, low, high, "LIMIT", 0, size)
            found += page
            if len(page) < size:
                break
            low = b"(" + page[-1]
        return found

    async def script(
        self,
        source: str,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        *,
        replicated: bool = False,
    ) -> Any:  # Any: as above
        """Run a server-side script; it is sent whole, since a restarted server forgets scripts.

        A `replicated` one counts when `wait_replicas` hold it. It is tried again until they do.
        """
        command = ("EVAL", source, len(keys), *keys, *arguments)
        wait = (self.wait_replicas, self.wait_ms) if replicated and self.wait_replicas else None
        return await self._try(lambda: self.connection.exchange(command, wait))

    def start(self, work: Coroutine[Any, Any, None]) -> None:  # Any: never sent to or yielded
        """Run something beside the callers until it ends or the store is closed."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    async def ping(self, for_s: float) -> None:
        """Make sure that the server answers within `for_s` seconds."""
        await self._try(lambda: self.connection.client.execute_command("PING"), for_s)

    async def write(
        self,
        thread_id: str,
        commands: Sequence[Command],
        fence: Fence | None,
        needed: Sequence[bytes] = (),
        stamp: bytes = b"",
    ) -> bool:
        """Apply commands on one thread, all or none, in one round trip.

        Returns False, and applies none, when the index lacks a needed member.

        Raises:
            LeaseLostError: The fence's lease ran out or was taken over.
            redis.ResponseError: The thread changed since its `stamp` was read; empty is any.
        """
        keys = self.thread(thread_id)
        value, token = (fence.value, fence.token) if fence else (b"", 0)
        arguments: list[Argument] = [value, stamp, UPDATED, token, len(needed), *needed]
        for command in commands:
            arguments += (len(command), *command)
        try:
            reply: int = await self.script(
                APPLY,
                (keys.lease, keys.data, keys.index, keys.fence),
                arguments,
                replicated=True,
            )
            return reply == 1
        except exceptions.ResponseError as error:
            if fence is not None and "STALELEASE" in str(error):
                raise LeaseLostError(fence.thread_id, fence.token) from error
            raise

    async def swap(
        self,
        thread_id: str,
        plan: Callable[[], Awaitable[Sequence[Command]]],
        fence: Fence | None,
    ) -> None:
        """Read a thread, plan commands, and apply them while the thread does not change.

        They are applied in order, a few at a time, so that none holds the server up. If the thread
        changes meanwhile, the rest is planned anew.

        Raises:
            ThreadContendedError: It changed at every try.
        """
        for _ in range(SWAP_TRIES):
            stamp: bytes | None = await self.call("HGET", self.thread(thread_id).data, UPDATED)
            if stamp is None or not (commands := await plan()):
                return
            try:
                for together in _steps(commands):
                    await self.write(thread_id, together, fence, stamp=stamp)
            except exceptions.ResponseError as error:
                if "CHANGED" not in str(error):
                    raise
            else:
                return
        raise ThreadContendedError(thread_id, SWAP_TRIES)

    async def close(self) -> None:
        """End what runs in the background, and close every connection."""
        tasks = list(self.background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.connection.close()

    async def _try(self, operation: Callable[[], Awaitable[T]], total_s: float | None = None) -> T:
        async def timed() -> T:
            # One clock for the whole operation: redis-py would set one for every reply.
            try:
                async with asyncio.timeout(self.timeout_s):
                    return await operation()
            except TimeoutError as error:
                raise exceptions.TimeoutError(f"no reply in {self.timeout_s} s") from error

        if self.pid is None:
            self.pid = os.getpid()
        if os.getpid() != self.pid:
            # The parent would take the reply for one of its own.
            raise StoreConfigError(
                f"a saver used by process {self.pid} was used by process {os.getpid()}, "
                "which was forked from it: open one in each process"
            )
        async with self.gate:
            return await self.retry(timed, total_s)


def chunks(items: Sequence[bytes], size: int = 500) -> list[list[bytes]]:
    """Cut arguments into commands that a server-side script can still unpack."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _steps(commands: Sequence[Command]) -> list[list[Command]]:
    """Group commands, in order, into steps of at most `STEP` arguments; a longer one is alone."""
    steps: list[list[Command]] = []
    left = 0
    for command in commands:
        if not steps or len(command) > left:
            steps.append([])
            left = STEP
        steps[-1].append(command)
        left -= len(command)
    return steps
