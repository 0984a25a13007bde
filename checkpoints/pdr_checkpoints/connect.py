"""From a URL to a client: one server, TLS, a Unix socket, Sentinel or Cluster.

    redis://host:6379/0                      rediss:// for TLS, unix:///path/to.sock
    redis+sentinel://h1:26379,h2:26379/name/0    the master called `name`, database 0
    redis+cluster://h1:7000,h2:7000          rediss+sentinel://, rediss+cluster:// for TLS

redis-py reads user, password and query options (`?ssl_ca_certs=ca.pem`); with Sentinel they are
those of the data servers, and those of the sentinels are `?sentinel_username=` and
`?sentinel_password=`. The saver's own options in a URL (`?wait_replicas=1`) are in `session`.
redis-py's pools do not wait: with 16 runs of 16 drafts they would raise, and a waiting one takes
7 µs more for an operation. `Store` bounds what is in flight instead.
"""

import re
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry as RedisRetry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from pdr_checkpoints.errors import REFUSALS, StoreConfigError

Argument = str | bytes | int | float
# Any: keyword arguments of redis-py.
_Keywords = dict[str, Any]

Wait = tuple[int, int]
"""How many replicas must confirm a write, and the milliseconds that they have for it."""
REDIRECTS: Final = 3
"""How often a write follows its slot to a new node, before the caller waits until the slot has
moved."""

SENTINEL_OPTIONS: Final = {"sentinel_username": "username", "sentinel_password": "password"}
"""Query options for the sentinels, by redis-py's names."""

SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)

CODES: Final[dict[type[Exception], str]] = {
    # redis-py cuts the code off an answer that it has a class for. Subclasses come first.
    exceptions.OutOfMemoryError: "OOM",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.BusyLoadingError: "LOADING",
    exceptions.MasterDownError: "MASTERDOWN",
    exceptions.ClusterDownError: "CLUSTERDOWN",
    exceptions.TryAgainError: "TRYAGAIN",
    # redis-py's client has tried it often enough.
    exceptions.ClusterError: "TRYAGAIN",
    exceptions.InvalidResponse: "ERR",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.AuthenticationError: "WRONGPASS",
    exceptions.AuthorizationError: "WRONGPASS",
}


class ReplicasMissingError(exceptions.RedisError):
    """Fewer replicas than wanted confirmed a write in time."""

    def __init__(self, wanted: int, held: int) -> None:
        self.wanted = wanted
        self.held = held
        super().__init__(f"{held} of {wanted} replicas confirmed a write")


@dataclass(frozen=True, slots=True)
class Connection:
    """A client and how to close all that it opened."""

    client: Redis | RedisCluster
    where: str
    """The URL without its password."""
    close: Callable[[], Awaitable[None]]
    num_at_once: int
    """How many commands the pool has connections for, beside those that are kept."""
    num_kept: int = 0
    """How many idle connections stay out of the pool between scripts; 0 where only the pool knows
    whether one still leads to the right server."""
    kept: list[Any] = field(default_factory=list)  # Any: redis-py's connections, half of it untyped

    @property
    def is_cluster(self) -> bool:
        """Whether keys live in slots, so that no script spans two threads."""
        return isinstance(self.client, RedisCluster)

    async def exchange(
        self, command: Sequence[Argument], wait: Wait | None = None
    ) -> Any:  # Any: a reply is what it is
        """Send one command and return its reply as it came.

        This bypasses redis-py's client and pool. Their retries, metrics and conversions are off or
        useless for a script's reply, and take as long as the round trip itself.

        Args:
            command: The command, its name first.
            wait: How many replicas must confirm it. `WAIT` is sent with it, on the same connection.

        Raises:
            ReplicasMissingError: The server did what it was asked, and fewer replicas confirmed it.
        """
        if isinstance(self.client, RedisCluster):
            if wait is None:
                return await self.client.execute_command(*command)
            return await self._exchange_in_cluster(self.client, command, wait)
        pool: Any = self.client.connection_pool  # Any: as above
        connection = await self._take(pool)
        try:
            return await _converse(connection, command, wait)
        except exceptions.ReadOnlyError:
            # The address may lead to another master now, and an open connection does not notice.
            await connection.disconnect(nowait=True)
            while self.kept:
                idle = self.kept.pop()
                await idle.disconnect(nowait=True)
                await pool.release(idle)
            await pool.disconnect(inuse_connections=False)
            raise
        finally:
            if (
                len(self.kept) < self.num_kept
                and connection.is_connected
                and not connection.should_reconnect()
            ):
                self.kept.append(connection)
            else:
                await pool.release(connection)

    async def _exchange_in_cluster(
        self, client: RedisCluster, command: Sequence[Argument], wait: Wait
    ) -> Any:  # Any: as above
        await client.initialize()
        for _ in range(REDIRECTS):
            node: Any = client.get_node_from_key(str(command[3]))  # Any: as above
            connection = node.acquire_connection()
            try:
                return await _converse(connection, command, wait)
            except (exceptions.MovedError, exceptions.AskError):
                # The client follows the slot to its new node, and remembers the node. The next try
                # stores the same once more, since only that try waits for the right replicas.
                await client.execute_command(*command)
            except (
                exceptions.ConnectionError,
                exceptions.ClusterDownError,
                exceptions.ReadOnlyError,
            ):
                await client.aclose()  # it looks for the nodes anew
                raise
            finally:
                node.release(connection)
        raise exceptions.TryAgainError("the slot is moving")

    async def _take(self, pool: Any) -> Any:  # Any: as above
        if self.kept:
            connection, is_ready = self.kept.pop(), False
            try:
                is_ready = connection.is_connected and not await connection.can_read()
                if is_ready:
                    return connection
                # The server closed it, or sent data that nobody asked for. The pool connects anew.
                await connection.disconnect(nowait=True)
            finally:
                if not is_ready:
                    await pool.release(connection)
        return await pool.get_connection()


async def _converse(
    connection: Any, command: Sequence[Argument], wait: Wait | None
) -> Any:  # Any: redis-py's connections, and a reply is what it is
    """Send a command and read its reply, on one connection.

    Sending and reading close the connection when they are cancelled or fail, so that no later
    caller reads a reply that was meant for this one.
    """
    packed = encode_command(command)
    if wait is None:
        await connection.send_packed_command(packed)
        return await connection.read_response()
    await connection.send_packed_command(packed + encode_command(("WAIT", *wait)))
    refusal: exceptions.ResponseError | None = None
    try:
        reply = await connection.read_response()
    except exceptions.ResponseError as error:
        refusal = error
    held = await connection.read_response()
    if refusal is not None:
        raise refusal
    if held < wait[0]:
        raise ReplicasMissingError(wait[0], held)
    return reply


NO_PASSWORD: Final = (
    "Authentication required",
    # The greeting of RESP 3, which redis-py takes for a lost connection.
    "HELLO must be called with the client already authenticated",
)
"""What servers say to a client without a password."""


def code_of(error: BaseException) -> str | None:
    """Find the code of a server's answer, a key of `REFUSALS` or ERR; None where none answered."""
    text = str(error)
    if (known := getattr(error, "status_code", None)) in REFUSALS:
        return str(known)
    if any(each in text for each in NO_PASSWORD):
        return "NOAUTH"
    for kind, code in CODES.items():
        if isinstance(error, kind):
            return code
    if "max number of clients" in text:
        return "MAXCLIENTS"
    if "ACL failure" in text or "The user executing the script" in text:
        return "NOPERM"
    if isinstance(error, exceptions.ResponseError):
        # Redis 6 puts what stopped a script after a dash.
        found = re.findall(r"(?:^|-)([A-Z]{3,}) ", text)
        return next((code for code in found if code in REFUSALS), "ERR")
    # A cluster's client wraps what its nodes answered.
    cause = error.__cause__ if isinstance(error, exceptions.RedisClusterException) else None
    return None if cause is None else code_of(cause)


def encode_command(command: Sequence[Argument]) -> bytes:
    """Write a command as the server reads it (RESP); redis-py takes three times as long.

    A number is written as Python writes it, text as UTF-8.
    """
    pieces = [b"*%d\r\n" % len(command)]
    for argument in command:
        raw = argument if isinstance(argument, bytes) else str(argument).encode()
        pieces.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(pieces)


def connect(url: str, *, max_connections: int, connect_timeout_s: float) -> Connection:
    """Make a client; nothing is sent until its first command.

    Raises:
        StoreConfigError: The URL is malformed or names no known kind of server.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise StoreConfigError(
            f"checkpoint URL {redact(url)!r} begins with {parts.scheme!r}, "
            f"it can begin with {', '.join(SCHEMES)}"
        )
    options: _Keywords = {
        # `Store` times replies. redis-py would start a clock for every one.
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout_s,
        "socket_keepalive": True,
    }
    try:
        if parts.scheme.endswith("+sentinel"):
            return _sentinel(parts, options, max_connections)
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
    # The URL may have set max_connections.
    num_kept = pool.max_connections // 2
    num_at_once = pool.max_connections - num_kept
    return Connection(client, redact(url), client.aclose, num_at_once, num_kept)


def redact(url: str) -> str:
    """Remove user and password from a URL, and the query, which may hold a password."""
    parts = urlsplit(url)
    return unsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def unsplit(parts: SplitResult) -> str:
    """Undo `urlsplit`."""
    if parts.scheme == "unix" and not parts.netloc:
        # urlunsplit drops the slashes of an authority that is empty.
        return f"unix://{urlunsplit(parts).removeprefix('unix:').removeprefix('//')}"
    return urlunsplit(parts)


def without_options(parts: SplitResult, names: Container[str]) -> SplitResult:
    """Leave options out of a URL's query, whose rest stays as it was written."""
    left = [each for each in parts.query.split("&") if each.partition("=")[0] not in names]
    return parts._replace(query="&".join(left))


def _sentinel(parts: SplitResult, options: _Keywords, max_connections: int) -> Connection:
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError(
            "name the service after the hosts, as in redis+sentinel://h:26379/mymaster"
        )
    # A sentinel that hangs is passed over as soon as one that is not there.
    asking = {**options, "socket_timeout": options["socket_connect_timeout"], "retry": _no_retry()}
    for name, value in parse_qsl(parts.query):
        if name in SENTINEL_OPTIONS:
            asking[SENTINEL_OPTIONS[name]] = value
    options |= _server_options(without_options(parts, SENTINEL_OPTIONS), f"/{database}")
    num_at_once = options.pop("max_connections", max_connections)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
        _hosts(parts, 26379), sentinel_kwargs=asking, retry=_no_retry(), **options
    )
    client: Redis = sentinel.master_for(service, max_connections=2**31)

    async def close() -> None:
        await client.aclose()
        await sentinel.aclose()

    return Connection(client, redact(urlunsplit(parts)), close, num_at_once)


def _cluster(parts: SplitResult, options: _Keywords, max_connections: int) -> Connection:
    options |= _server_options(parts, "")
    num_at_once = options.pop("max_connections", max_connections)
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in _hosts(parts, 6379)],
        # `Store` bounds what runs at once. The refresh of the topology needs some beside it.
        max_connections=num_at_once + 8,
        retry=RedisRetry(NoBackoff(), 3),  # moved slots: the client must ask again itself
        **options,
    )
    return Connection(client, redact(urlunsplit(parts)), client.aclose, num_at_once)


def _hosts(parts: SplitResult, default_port: int) -> list[tuple[str, int]]:
    hosts = []
    for host in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError(f"{host!r} is not a host")
        hosts.append((one.hostname, one.port or default_port))
    return hosts


def _server_options(parts: SplitResult, path: str) -> _Keywords:
    """Let redis-py read user, password, database and query from an ordinary URL."""
    user = parts.netloc.rpartition("@")[0]
    plain = parts._replace(
        scheme=parts.scheme.partition("+")[0],
        netloc=f"{user}@localhost" if user else "localhost",
        path=path,
    )
    options: _Keywords = dict(parse_url(urlunsplit(plain)))
    del options["host"]
    if options.get("max_connections", 1) < 1:
        raise ValueError(f"max_connections is {options['max_connections']}, it must be above 0")
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    return options


def _no_retry() -> RedisRetry:
    # `Store` alone tries again: nested retries would multiply.
    return RedisRetry(NoBackoff(), 0)
