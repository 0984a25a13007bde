"""The one place that talks to Redis: reads, atomic writes, compare-and-set.

Every write is one server-side script, in one round trip, applied all or nothing. A transaction
(MULTI/EXEC) cannot depend on what a key holds, as a write under a lease must, and answers each
command twice; the script answers once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from redis import exceptions

from checkpoints.connect import Argument, Connection
from checkpoints.errors import LeaseLostError, StoreConfigError, ThreadContendedError
from checkpoints.keys import UPDATED, ThreadKeys
from checkpoints.retry import Retry

T = TypeVar("T")
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
    retry: Retry
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
