"""Opens a saver's session: its options, its connections in one event loop, what the server is."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from pdr_checkpoints.connect import connect
from pdr_checkpoints.envelope import Compression, Envelope
from pdr_checkpoints.errors import StoreConfigError
from pdr_checkpoints.lease import Leases
from pdr_checkpoints.store import Fence, Store, StoreRetry
from pdr_checkpoints.writer import Writer

UNKNOWN: Final = "unknown"
"""Said where a managed server forbids CONFIG."""


@dataclass(frozen=True, slots=True)
class SaverOptions:
    """Settings of a `RedisSaver`; the defaults suit most."""

    prefix: str = "checkpoint"
    """First part of every key; savers with different prefixes do not see each other's threads."""
    ttl_s: float | None = None
    """Seconds that a whole thread lives after its last write; None keeps it until deleted."""
    compression: Compression = "zstd"
    """How stored bytes are compressed; all that was written before stays readable."""
    encryption_keys: Sequence[bytes] = ()
    """Keys of 32 bytes: the first writes, all read. Empty stores plain bytes."""
    max_connections: int = 32
    """Bound on connections, half of which stay ready while idle. Operations that find none wait."""
    reply_timeout_s: float = 20.0
    """A reply that takes longer counts as a lost connection."""
    retry_for_s: float = 30.0
    """How long operations are tried again, all together, while the server is away."""
    open_for_s: float = 3.0
    """How long opening, and each new connection, is tried: a wrong URL is reported soon."""
    lease_ttl_s: float = 30.0
    """Seconds after which the thread of a dead process may be taken over."""

    def __post_init__(self) -> None:
        if not self.prefix or set(self.prefix) & set("{}"):
            raise StoreConfigError(f"key prefix {self.prefix!r} must be non-empty, without braces")
        for name in ("max_connections", "reply_timeout_s", "open_for_s", "lease_ttl_s"):
            if getattr(self, name) <= 0:
                raise StoreConfigError(f"{name} is {getattr(self, name)}, it must be above 0")
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise StoreConfigError(f"ttl_s is {self.ttl_s}, it must be above 0, or None to keep")


@dataclass(frozen=True, slots=True)
class LoopSession:
    """What a saver owns in one event loop."""

    store: Store
    envelope: Envelope
    writer: Writer
    leases: Leases


def open_session(url: str, options: SaverOptions, held: dict[str, Fence]) -> LoopSession:
    """Make a session that shares leases by thread; nothing is sent until its first command."""
    connection = connect(
        url, max_connections=options.max_connections, connect_timeout_s=options.open_for_s
    )
    store = Store(
        connection,
        options.prefix,
        StoreRetry(connection.where, options.retry_for_s),
        options.reply_timeout_s,
        asyncio.Semaphore(connection.num_at_once),
    )
    envelope = Envelope(options.compression, options.encryption_keys)
    leases = Leases(store, held)
    writer = Writer(store, envelope, leases, options.ttl_s)
    return LoopSession(store, envelope, writer, leases)


@dataclass(frozen=True, slots=True)
class Health:
    """What a server is, and whether it keeps what it is given."""

    where: str
    """URL without its password."""
    server: str
    """`redis 7.0.15` or `valkey 9.1.2`."""
    mode: str
    """`standalone`, `sentinel` or `cluster`, as the server says."""
    appendonly: str
    """`yes`, `no` or `unknown`."""
    appendfsync: str
    """`always`, `everysec`, `no` or `unknown`."""
    maxmemory_policy: str
    persistent: bool | None
    """Whether a restart of the server keeps threads; None when it does not say."""
    warnings: tuple[str, ...]
    """One sentence for each way to lose a run."""


async def examine(store: Store) -> Health:
    """Ask the server what it is."""
    where = store.connection.where
    info = await _info(store)
    appendonly = await _config(store, "appendonly")
    policy = await _config(store, "maxmemory-policy")
    warnings = []
    if appendonly == "no":
        warnings.append(
            f"Redis at {where} has appendonly no: a crash of the server loses every "
            "checkpoint since its last snapshot; set appendonly yes"
        )
    for kind, loss in (
        ("allkeys-", "checkpoints of live runs"),
        ("volatile-", "threads that have a ttl, and leases"),
    ):
        if policy.startswith(kind):
            warnings.append(
                f"Redis at {where} has maxmemory-policy {policy}: when memory is full it "
                f"deletes {loss}; set noeviction"
            )
    name = str(info.get("server_name", "redis"))
    version = info.get(f"{name}_version", info.get("redis_version", UNKNOWN))
    return Health(
        where=where,
        server=f"{name} {version}",
        mode=str(info.get("redis_mode", info.get("server_mode", UNKNOWN))),
        appendonly=appendonly,
        appendfsync=await _config(store, "appendfsync"),
        maxmemory_policy=policy,
        persistent=None if appendonly == UNKNOWN else appendonly == "yes",
        warnings=tuple(warnings),
    )


async def _info(store: Store) -> Mapping[str, Any]:  # Any: INFO mixes text and numbers
    try:
        return _of_one_node(await store.call("INFO", "server"))
    except ResponseError:
        return {}


async def _config(store: Store, name: str) -> str:
    try:
        found = _of_one_node(await store.call("CONFIG GET", name))
    except ResponseError:
        return UNKNOWN
    value = found.get(name, found.get(name.encode(), UNKNOWN))
    return value.decode() if isinstance(value, bytes) else str(value)


def _of_one_node(reply: Mapping[Any, Any]) -> Mapping[Any, Any]:  # Any: as above
    """Return one node's reply: a cluster client may answer by node."""
    first = next(iter(reply.values()), None) if reply else None
    return first if isinstance(first, dict) else reply or {}
