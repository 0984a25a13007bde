"""What a saver owns in one event loop: a connection pool and all that works on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from checkpoints.connect import connect
from checkpoints.encryption import Keyring
from checkpoints.envelope import Envelope
from checkpoints.keys import Keyspace
from checkpoints.lease import Leases
from checkpoints.options import Options
from checkpoints.reader import Reader
from checkpoints.retry import Retry
from checkpoints.store import Fence, Store
from checkpoints.writer import Writer


@dataclass(frozen=True, slots=True)
class Session:
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


def open_session(url: str, options: Options, held: dict[str, Fence]) -> Session:
    """Make a session; nothing is sent until its first command."""
    connection = connect(
        url, max_connections=options.max_connections, connect_timeout_s=options.open_for_s
    )
    store = Store(
        connection,
        Retry(total_s=options.retry_for_s),
        options.reply_timeout_s,
        asyncio.Semaphore(connection.num_at_once),
    )
    keyspace = Keyspace(options.prefix)
    keyring = Keyring(options.encryption_keys) if options.encryption_keys else None
    envelope = Envelope(options.compression, keyring)
    return Session(
        store,
        keyspace,
        envelope,
        Reader(store, keyspace, envelope),
        Writer(store, keyspace, envelope, options.ttl_s),
        Leases(store, keyspace, held),
    )
