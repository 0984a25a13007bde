"""From a URL to a client: one server, TLS, a Unix socket, Sentinel or Cluster.

    redis://host:6379/0                      rediss:// for TLS, unix:///path/to.sock
    redis+sentinel://h1:26379,h2:26379/name/0    the master called `name`, database 0
    redis+cluster://h1:7000,h2:7000          rediss+sentinel://, rediss+cluster:// for TLS

User, password and query options (`?ssl_ca_certs=ca.pem`) are what redis-py takes; with Sentinel
they are the data servers'. The pools do not wait: `Store` bounds what is in flight, where redis-py
would raise when 16 runs draft 16 answers at once, or take 7 µs an operation to avoid it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry as RedisRetry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.typing import EncodableT

from checkpoints.errors import StoreConfigError

SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and how to close all that it opened."""

    client: Redis | RedisCluster
    where: str
    """The URL without its password."""
    close: Callable[[], Awaitable[None]]

    @property
    def is_cluster(self) -> bool:
        """Whether keys live in slots, so that no transaction spans two threads."""
        return isinstance(self.client, RedisCluster)

    async def exchange(self, command: Sequence[EncodableT]) -> Any:  # Any: a reply is what it is
        """Run one command and give its reply as it came.

        Past the client, which adds a fifth to a round trip for retries and metrics that are off
        and for conversions that a script's reply does not need.
        """
        if isinstance(self.client, RedisCluster):
            return await self.client.execute_command(*command)
        pool: Any = self.client.connection_pool  # Any: redis-py leaves half of its methods untyped
        connection = await pool.get_connection()
        try:
            # Both close the connection when they are cancelled or fail, so that no later caller
            # reads a reply that was meant for this one.
            await connection.send_command(*command)
            return await connection.read_response()
        finally:
            await pool.release(connection)


def connect(url: str, *, max_connections: int, connect_timeout_s: float) -> Connection:
    """Make a client; nothing is sent until its first command.

    Raises:
        StoreConfigError: The URL names no kind of server that is known here.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise StoreConfigError(
            f"checkpoint URL {redact(url)!r} begins with {parts.scheme!r}, "
            f"it can begin with {', '.join(SCHEMES)}"
        )
    options: dict[str, Any] = {  # Any: keyword arguments of redis-py
        # Replies are timed by the store; redis-py would start a clock for every one.
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout_s,
        "socket_keepalive": True,
    }
    try:
        if parts.scheme.endswith("+sentinel"):
            return _sentinel(parts, options)
        if parts.scheme.endswith("+cluster"):
            return _cluster(parts, options, max_connections)
        if parts.scheme == "unix":
            del options["socket_keepalive"]  # redis-py's Unix connection does not take it
        pool = ConnectionPool.from_url(
            url, max_connections=max_connections, retry=_no_retry(), **options
        )
    except (ValueError, IndexError) as error:
        raise StoreConfigError(f"checkpoint URL {redact(url)!r} is malformed: {error}") from error
    client = Redis.from_pool(pool)
    return Connection(client, redact(url), client.aclose)


def redact(url: str) -> str:
    """Hide the password of a URL, and the query, which may hold one."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    if parts.scheme == "unix":
        # urlunsplit drops the slashes of an authority that is empty.
        return f"unix://{netloc}{parts.path}"
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))


def _sentinel(parts: SplitResult, options: dict[str, Any]) -> Connection:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError(
            "name the service after the hosts, as in redis+sentinel://h:26379/mymaster"
        )
    asking = {**options, "retry": _no_retry()}
    options |= _server_options(parts, f"/{database}")
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        _hosts(parts, 26379), sentinel_kwargs=asking, retry=_no_retry(), **options
    )
    client: Redis = sentinel.master_for(service, max_connections=2**31)

    async def close() -> None:
        await client.aclose()
        await sentinel.aclose()

    return Connection(client, redact(urlunsplit(parts)), close)


def _cluster(parts: SplitResult, options: dict[str, Any], max_connections: int) -> Connection:
    options |= _server_options(parts, "")
    nodes = [ClusterNode(host, port) for host, port in _hosts(parts, 6379)]
    client = RedisCluster(
        startup_nodes=nodes,
        # The store's gate bounds what runs at once; the topology refresh needs some beside it.
        max_connections=max_connections + 8,
        retry=RedisRetry(NoBackoff(), 3),  # moved slots: the client must ask again itself
        **options,
    )
    return Connection(client, redact(urlunsplit(parts)), client.aclose)


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    hosts = []
    for host in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError(f"{host!r} is not a host")
        hosts.append((one.hostname, one.port or default_port))
    return hosts


def _server_options(parts: SplitResult, path: str) -> dict[str, Any]:
    """Let redis-py read user, password, database and query from an ordinary URL."""
    user = parts.netloc.rpartition("@")[0]
    plain = parts._replace(
        scheme=parts.scheme.partition("+")[0],
        netloc=f"{user}@localhost" if user else "localhost",
        path=path,
    )
    options = dict(parse_url(urlunsplit(plain)))
    del options["host"]
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    return options


def _no_retry() -> RedisRetry:
    # `checkpoints.retry` is the one place that tries again; nested retries would multiply.
    return RedisRetry(NoBackoff(), 0)
