"""Tries again while a server is away, for a bounded time.

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
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from redis import exceptions

from checkpoints.errors import StoreConfigError, StoreUnreachableError

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
class Retry:
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
