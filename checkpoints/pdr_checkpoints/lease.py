"""One process runs a thread at a time: a lease with a fencing token.

The lease is a key with a time to live, set if absent, that names its holder. While the run lives, a
task renews it every third of that time. When the process dies, the lease runs out and another may
take over. Each lease has a token one higher than the last. A write under a lease is applied only if
no later token was given out, so a process that slept through its lease (a suspended laptop, a
paused container) cannot write over its successor's work.

After Kleppmann, "How to do distributed locking": the token is checked where the data is.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from pdr_checkpoints.connect import Argument
from pdr_checkpoints.errors import SaverError, StoreConfigError, ThreadBusyError
from pdr_checkpoints.keys import ThreadKeys
from pdr_checkpoints.store import Fence, Store

logger = logging.getLogger(__name__)

ACQUIRE: Final = """
local held = redis.call('GET', KEYS[1])
if held then return {0, held, redis.call('PTTL', KEYS[1])} end
local token = redis.call('INCR', KEYS[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
local value = token .. ' ' .. ARGV[1]
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
return {1, value, token}
"""
RENEW: Final = """
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
if held or redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
"""Also takes back a lease that ran out, if none was given out since (the server was down)."""
RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
FENCE_TTL_S: Final = 30 * 24 * 3600
"""Tokens start again after a month without a lease; the random part still tells leases apart."""
LEAST_FENCE_TTL_S: Final = 3600
"""Least of the same for threads that expire: their tokens live as long as they, but at least an
hour."""
WAIT_POLL_S: Final = 0.2

_begun: Final[ContextVar[tuple[tuple[dict[str, Fence], Fence], ...]]] = ContextVar(
    "_begun", default=()
)
"""Leases within which this task was made, the latest first, each with the leases of its saver.

Such a task may write when its lease is over: a cancelled run goes on storing for a moment. If
another process has the thread by then, the write must be refused."""


@dataclass(slots=True)
class Lease:
    """The right to run one thread, until `lost`."""

    thread_id: str
    token: int
    owner: str
    fence: Fence
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the lease ran out or was taken over; writes are refused from then on."""


@dataclass
class Leases:
    """The leases that this process holds, by thread."""

    store: Store
    held: dict[str, Fence]
    """Shared by the async saver and its sync methods, so that both write under the lease."""
    thread_ttl_s: float | None = None
    """Seconds that a thread lives after its last write; None keeps it."""

    def fence(self, thread_id: str) -> Fence | None:
        """Return the lease under which the current task writes a thread; None without one."""
        if thread_id in self.held:
            return self.held[thread_id]
        for held, fence in _begun.get():
            if held is self.held and fence.thread_id == thread_id:
                return fence
        return None

    @asynccontextmanager
    async def hold(
        self, thread_id: str, *, ttl_s: float, wait_s: float, owner: str | None
    ) -> AsyncIterator[Lease]:
        """Hold the lease of a thread while the block runs.

        Raises:
            ThreadBusyError: Another holder has it, and still had it after `wait_s` seconds.
        """
        if ttl_s <= 0:
            raise StoreConfigError(f"lease ttl_s is {ttl_s}, it must be above 0")
        keys = self.store.thread(thread_id)
        owner = owner or f"{socket.gethostname()}:{os.getpid()}"
        lease = await self._acquire(thread_id, keys, ttl_s, wait_s, owner)
        self.held[thread_id] = lease.fence
        _begun.set(((self.held, lease.fence), *_begun.get()))
        renewal = asyncio.create_task(self._renew(lease, keys, ttl_s))
        try:
            yield lease
        finally:
            _begun.set(tuple(one for one in _begun.get() if one[1] is not lease.fence))
            renewal.cancel()
            await asyncio.gather(renewal, return_exceptions=True)
            del self.held[thread_id]
            # Shielded: a cancelled run must not leave its thread locked until the lease runs out.
            await asyncio.shield(self._release(lease, keys))

    async def _acquire(
        self, thread_id: str, keys: ThreadKeys, ttl_s: float, wait_s: float, owner: str
    ) -> Lease:
        give_up = time.monotonic() + wait_s
        name = f"{secrets.token_hex(4)} {owner}"
        fence_ttl_s: float = FENCE_TTL_S
        if self.thread_ttl_s is not None:
            fence_ttl_s = min(FENCE_TTL_S, max(self.thread_ttl_s, ttl_s, LEAST_FENCE_TTL_S))
        while True:
            got, value, number = await self.store.script(
                ACQUIRE,
                [keys.lease, keys.fence],
                [name, int(ttl_s * 1000), int(fence_ttl_s * 1000)],
                replicated=True,
            )
            # A retry after a lost reply finds the lease that the first try took.
            if got or value.decode().partition(" ")[2] == name:
                token = int(value.split(b" ", 1)[0])
                return Lease(thread_id, token, owner, Fence(thread_id, token, value))
            if time.monotonic() >= give_up:
                raise ThreadBusyError(thread_id, holder_of(value), max(number, 0) / 1000)
            await asyncio.sleep(min(WAIT_POLL_S, max(0.0, give_up - time.monotonic())))

    async def _renew(self, lease: Lease, keys: ThreadKeys, ttl_s: float) -> None:
        arguments: list[Argument] = [lease.fence.value, int(ttl_s * 1000), lease.token]
        while True:
            await asyncio.sleep(ttl_s / 3)
            try:
                renewed = await self.store.script(RENEW, [keys.lease, keys.fence], arguments)
            except SaverError as error:
                # The server is away: writes fail by themselves, and it may come back in time.
                logger.warning("lease.unrenewed thread=%s error=%s", lease.thread_id, error)
                continue
            if not renewed:
                logger.error("lease.lost thread=%s token=%d", lease.thread_id, lease.token)
                lease.lost.set()
                return

    async def _release(self, lease: Lease, keys: ThreadKeys) -> None:
        try:
            await self.store.script(RELEASE, [keys.lease], [lease.fence.value])
        except SaverError as error:
            logger.warning("lease.unreleased thread=%s error=%s", lease.thread_id, error)


def holder_of(value: bytes) -> str:
    """Read the holder from the value of a lease key: `<token> <random> <owner>`."""
    return value.decode("utf-8", "replace").split(" ", 2)[-1]
