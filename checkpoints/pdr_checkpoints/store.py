"""The one place that talks to Redis: reads, atomic writes, compare-and-set.

Every write is one server-side script, in one round trip, applied all or nothing. A transaction
(MULTI/EXEC) cannot depend on what a key holds, as a write under a lease must, and answers each
command twice; the script answers once.

Tries again while a server is away, for a bounded time.

A server that is killed and restarted refuses connections, then answers LOADING while it reads its
append-only file; a failover answers READONLY or CLUSTERDOWN for a moment. All of these pass. Every
operation of the saver can be repeated without harm (`HSET`, `HSETNX`, `ZADD` and compare-and-set
scripts), so a lost reply is answered by asking again.

All operations of a store share one outage: its time counts once, not anew for each operation that
follows the first, such as the release of a lease after a write that gave up.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from redis import exceptions

from pdr_checkpoints.connect import Argument, Connection
from pdr_checkpoints.errors import (
    LeaseLostError,
    StoreConfigError,
    StoreUnreachableError,
    ThreadContendedError,
)
from pdr_checkpoints.keys import UPDATED, ThreadKeys

T = TypeVar("T")
logger = logging.getLogger(__name__)

PASSING: Final[tuple[type[Exception], ...]] = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.TryAgainError,
    exceptions.ClusterDownError,
    exceptions.RedisClusterException,
    OSError,
)
LASTING: Final[tuple[type[Exception], ...]] = (
    # Subclasses of the above that a second try does not cure.
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.CrossSlotTransactionError,
)


@dataclass(slots=True)
class Outage:
    """How long the server has been away, as all operations of a store have seen it."""

    since: float | None = None
    """Clock of its first failure; None while the server answers."""
    last: float = 0.0
    """Clock of its latest failure."""
    was_reached: bool = False
    """Whether the server has ever answered."""

    def seen(self, started: float, total_s: float) -> bool:
        """Note a failed try, and say whether it is the first of the outage."""
        # After a silence this long nobody knows whether the server was away all the time.
        is_first = self.since is None or started - self.last > total_s
        if is_first:
            self.since = started
        self.last = time.monotonic()
        return is_first


@dataclass(frozen=True, slots=True)
class StoreRetry:
    """Exponential backoff with jitter, until a total time is spent."""

    total_s: float = 30.0
    """Give up when the server has been away for this long; 0 tries once."""
    first_s: float = 0.05
    """Pause after the first failure; each later one doubles it."""
    longest_s: float = 2.0
    """Bound on one pause."""
    outage: Outage = field(default_factory=Outage)
    """Shared by every operation that is tried by this."""

    async def __call__(self, operation: Callable[[], Awaitable[T]], where: str) -> T:
        """Run an operation until it succeeds.

        Raises:
            StoreUnreachableError: The server was away for `total_s` seconds.
            StoreConfigError: The server refuses the credentials.
        """
        started = time.monotonic()
        pause_s = self.first_s
        while True:
            try:
                result = await operation()
            except LASTING as error:
                raise StoreConfigError(f"Redis at {where} refused the client: {error}") from error
            except PASSING as error:
                is_first = self.outage.seen(started, self.total_s)
                # A server that never answered is the caller's first sentence, not a warning.
                if is_first and self.outage.was_reached and self.total_s > 0:
                    logger.warning(
                        "store.retry where=%s for_s=%g: the server does not answer (%s), "
                        "trying again",
                        where,
                        self.total_s,
                        error,
                    )
                spent_s = time.monotonic() - (self.outage.since or started)
                # Full jitter: a hundred runs that lost one server must not return as one.
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if spent_s + wait_s > self.total_s:
                    raise StoreUnreachableError(where, spent_s, error) from error
                await asyncio.sleep(wait_s)
                pause_s = min(2 * pause_s, self.longest_s)
            else:
                self.outage.since = None
                self.outage.was_reached = True
                return result


Command = tuple[Argument, ...]

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
index has the given members; 0 when it lacks one.

A lease that ran out while the server was down still counts until another was given out."""

SWAP_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of a lease: the key must hold the value for a write to be applied."""

    thread_id: str
    token: int
    value: bytes


@dataclass
class Store:
    """Commands on one connection pool, retried, in one event loop."""

    connection: Connection
    retry: StoreRetry
    timeout_s: float
    """A reply that takes longer counts as a lost connection."""
    gate: asyncio.Semaphore
    """Bounds operations in flight, and with them connections: redis-py's pools would raise."""
    closed: bool = field(default=False)
    pid: int | None = None
    """Process that the connections belong to; None before the first."""

    @property
    def where(self) -> str:
        """The URL, without its password."""
        return self.connection.where

    @property
    def is_cluster(self) -> bool:
        """Whether no transaction spans two threads."""
        return self.connection.is_cluster

    async def one(self, *command: Argument) -> Any:  # Any: a reply is what it is
        """Run one command."""
        return await self._try(lambda: self.connection.client.execute_command(*command))

    async def read(self, commands: Sequence[Command]) -> list[Any]:
        """Run commands in one round trip, not as a transaction."""
        return await self._try(lambda: self._pipeline(commands))

    async def write(
        self,
        keys: ThreadKeys,
        commands: Sequence[Command],
        fence: Fence | None,
        needed: Sequence[bytes] = (),
    ) -> bool:
        """Apply commands on one thread, all or none, in one round trip.

        Gives False, and applies none, when a needed member of the index is not there.

        Raises:
            LeaseLostError: The fence's lease ran out or was taken over.
        """
        return await self._apply(keys, commands, fence, b"", needed)

    async def script(
        self, source: str, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:  # Any: a reply is what it is
        """Run a server-side script; sent whole, since a restarted server forgets scripts."""
        command = ("EVAL", source, len(keys), *keys, *arguments)
        return await self._try(lambda: self.connection.exchange(command))

    async def swap(
        self,
        thread_id: str,
        keys: ThreadKeys,
        plan: Callable[[], Awaitable[Sequence[Command]]],
        fence: Fence | None,
    ) -> None:
        """Read a thread, plan commands, and apply them if the thread has not changed meanwhile.

        Raises:
            ThreadContendedError: It changed at every try.
        """
        for _ in range(SWAP_TRIES):
            stamp: bytes | None = await self.one("HGET", keys.data, UPDATED)
            if stamp is None:
                return
            commands = await plan()
            if not commands:
                return
            try:
                await self._apply(keys, commands, fence, stamp)
            except exceptions.ResponseError as error:
                if "CHANGED" not in str(error):
                    raise
            else:
                return
        raise ThreadContendedError(thread_id, SWAP_TRIES)

    async def close(self) -> None:
        """Close every connection."""
        if not self.closed:
            self.closed = True
            await self.connection.close()

    async def _apply(
        self,
        keys: ThreadKeys,
        commands: Sequence[Command],
        fence: Fence | None,
        stamp: bytes,
        needed: Sequence[bytes] = (),
    ) -> bool:
        value, token = (fence.value, fence.token) if fence else (b"", 0)
        arguments: list[Argument] = [value, stamp, UPDATED, token, len(needed), *needed]
        for command in commands:
            arguments += (len(command), *command)
        try:
            reply: int = await self.script(
                APPLY, (keys.lease, keys.data, keys.index, keys.fence), arguments
            )
            return reply == 1
        except exceptions.ResponseError as error:
            if fence is not None and "STALELEASE" in str(error):
                raise LeaseLostError(fence.thread_id, fence.token) from error
            raise

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        # Any: redis-py types pipelines per client class; all have these methods.
        pipe: Any = self.connection.client.pipeline(transaction=False)
        async with pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute()
            return replies

    async def _try(self, operation: Callable[[], Awaitable[T]]) -> T:
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
            return await self.retry(timed, self.where)
