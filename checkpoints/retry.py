"""Tries again while a server is away, for a bounded time.

A server that is killed and restarted refuses connections, then answers LOADING while it reads its
append-only file; a failover answers READONLY or CLUSTERDOWN for a moment. All of these pass. Every
operation of the saver can be repeated without harm (`HSET`, `HSETNX`, `ZADD` and compare-and-set
scripts), so a lost reply is answered by asking again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from redis import exceptions

from checkpoints.errors import StoreConfigError, StoreUnreachableError

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential backoff with jitter, until a total time is spent."""

    total_s: float = 30.0
    """Give up when an operation has failed for this long; 0 tries once."""
    first_s: float = 0.05
    """Pause after the first failure; each later one doubles it."""
    longest_s: float = 2.0
    """Bound on one pause."""

    async def __call__(self, operation: Callable[[], Awaitable[T]], where: str) -> T:
        """Run an operation until it succeeds.

        Raises:
            StoreUnreachableError: It failed for `total_s` seconds.
            StoreConfigError: The server refuses the credentials.
        """
        start = time.monotonic()
        pause_s = self.first_s
        while True:
            try:
                return await operation()
            except LASTING as error:
                raise StoreConfigError(f"Redis at {where} refused the client: {error}") from error
            except PASSING as error:
                spent_s = time.monotonic() - start
                # Full jitter: a hundred runs that lost one server must not return as one.
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if spent_s + wait_s > self.total_s:
                    raise StoreUnreachableError(where, spent_s, error) from error
                await asyncio.sleep(wait_s)
                pause_s = min(2 * pause_s, self.longest_s)
