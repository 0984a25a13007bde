"""What a saver owns in one event loop: a connection pool and all that works on it.

What a saver can be told, and what it does when told nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pdr_checkpoints.connect import connect
from pdr_checkpoints.envelope import Compression, Envelope, Keyring
from pdr_checkpoints.errors import StoreConfigError
from pdr_checkpoints.keys import Keyspace
from pdr_checkpoints.lease import Leases
from pdr_checkpoints.reader import Reader
from pdr_checkpoints.store import Fence, Store, StoreRetry
from pdr_checkpoints.writer import Writer


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a `RedisSaver`; every one has a default that is right for most."""

    prefix: str = "checkpoint"
    """First part of every key; savers with different prefixes do not see each other's threads."""
    ttl_s: float | None = None
    """Seconds that a whole thread lives after its last write; None keeps it until deleted."""
    compression: Compression = "zstd"
    """How stored bytes are compressed; whatever was written before stays readable."""
    encryption_keys: Sequence[bytes] = ()
    """Keys of 32 bytes: the first writes, all read. Empty stores plain bytes."""
    max_connections: int = 32
    """Bound on connections, half of which are kept ready while idle; operations that find none
    wait their turn, none fails."""
    reply_timeout_s: float = 20.0
    """A reply that takes longer counts as a lost connection."""
    retry_for_s: float = 30.0
    """How long operations are tried again, all together, while the server is away."""
    open_for_s: float = 3.0
    """How long opening, and each new connection, is tried: a wrong URL is reported soon."""
    lease_ttl_s: float = 30.0
    """Seconds after which the thread of a dead process may be taken over."""

    def __post_init__(self) -> None:
        for name in ("max_connections", "reply_timeout_s", "open_for_s", "lease_ttl_s"):
            if getattr(self, name) <= 0:
                raise StoreConfigError(f"{name} is {getattr(self, name)}, it must be above 0")
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise StoreConfigError(f"ttl_s is {self.ttl_s}, it must be above 0, or None to keep")


@dataclass(frozen=True, slots=True)
class LoopSession:
    """A pool of connections with its reader, writer and leases."""

    store: Store
    keyspace: Keyspace
    envelope: Envelope
    reader: Reader
    writer: Writer
    leases: Leases

    def fence(self, thread_id: str) -> Fence | None:
        """Give the lease under which the current task writes a thread, None without one."""
        return self.leases.fence(thread_id)

    async def ping(self, for_s: float) -> None:
        """Make sure that the server answers.

        Raises:
            StoreUnreachableError: It did not within `for_s` seconds.
        """
        patient = self.store.retry
        self.store.retry = replace(patient, total_s=for_s)
        try:
            await self.store.one("PING")
        finally:
            self.store.retry = patient


def open_session(url: str, options: Options, held: dict[str, Fence]) -> LoopSession:
    """Make a session; nothing is sent until its first command."""
    connection = connect(
        url, max_connections=options.max_connections, connect_timeout_s=options.open_for_s
    )
    store = Store(
        connection,
        StoreRetry(total_s=options.retry_for_s),
        options.reply_timeout_s,
        asyncio.Semaphore(connection.num_at_once),
    )
    keyspace = Keyspace(options.prefix)
    keyring = Keyring(options.encryption_keys) if options.encryption_keys else None
    envelope = Envelope(options.compression, keyring)
    return LoopSession(
        store,
        keyspace,
        envelope,
        Reader(store, keyspace, envelope),
        Writer(store, keyspace, envelope, options.ttl_s),
        Leases(store, keyspace, held),
    )
