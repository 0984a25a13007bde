"""A saver's sessions: its options, its connections in each event loop, what the server is."""

import asyncio
import math
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pdr_checkpoints.connect import connect, redact, unsplit, without_options
from pdr_checkpoints.envelope import Compression, Envelope
from pdr_checkpoints.errors import SaverError, StoreConfigError, StoreRefusedError
from pdr_checkpoints.lease import Leases
from pdr_checkpoints.registry import RegistrySweeper
from pdr_checkpoints.serde import MAX_CHECKPOINT_BYTES
from pdr_checkpoints.store import Fence, Store, StoreRetry
from pdr_checkpoints.writer import Writer

T = TypeVar("T")
# Any: the send and yield types of a coroutine, which nobody uses.
Call = Coroutine[Any, Any, T]

UNKNOWN: Final = "unknown"
"""Stands for settings of a managed server that forbids CONFIG."""


@dataclass(frozen=True, slots=True)
class SaverOptions:
    """Settings of a `RedisSaver`; the defaults suit most."""

    prefix: str = "checkpoint"
    """First part of every key; savers with different prefixes do not see each other's threads."""
    ttl_s: float | None = None
    """Seconds that a whole thread lives after its last write; None keeps it until deleted."""
    compression: Compression = "zstd"
    """How stored bytes are compressed; all that was written before stays readable."""
    encryption_keys: Sequence[bytes] = field(default=(), repr=False)
    """Keys of 32 bytes: the first writes, all read. Empty stores plain bytes. With keys, what none
    of them binds to its thread and its place is refused, plain bytes too."""
    read_older: bool = False
    """With keys: read plain bytes as well, and those that an early release encrypted, which did not
    bind them to their thread. For the change of an old store: `reseal_thread` seals it anew."""
    max_checkpoint_bytes: int = MAX_CHECKPOINT_BYTES
    """Memory that the values of one checkpoint may take when they are read; 256 MiB. What would
    take more is refused before it is built. It also bounds the history of a delta channel, and all
    records of a thread that is pruned."""
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
    wait_replicas: int = 0
    """Replicas that must confirm a write before it counts; 0 asks none. It is tried again for
    `retry_for_s`, then the run stops: nothing is acknowledged that a failover could lose."""
    wait_s: float = 1.0
    """How long the replicas are waited for, at each try."""

    def __post_init__(self) -> None:
        if not self.prefix or set(self.prefix) & set("{}"):
            raise StoreConfigError(f"key prefix {self.prefix!r} must be non-empty, without braces")
        for name in (
            *("max_checkpoint_bytes", "max_connections"),
            *("reply_timeout_s", "open_for_s", "lease_ttl_s", "wait_s"),
        ):
            if getattr(self, name) <= 0:
                raise StoreConfigError(f"{name} is {getattr(self, name)}, it must be above 0")
        for name in ("wait_replicas", "retry_for_s"):
            if getattr(self, name) < 0:
                raise StoreConfigError(f"{name} is {getattr(self, name)}, it must not be negative")
        if self.wait_replicas and self.wait_s >= self.reply_timeout_s:
            raise StoreConfigError(
                f"wait_s is {self.wait_s}, it must be below reply_timeout_s, "
                f"which is {self.reply_timeout_s}"
            )
        if self.ttl_s is not None and self.ttl_s <= 0:
            raise StoreConfigError(f"ttl_s is {self.ttl_s}, it must be above 0, or None to keep")
        Envelope(self.compression, self.encryption_keys)  # checks both


URL_OPTIONS: Final[dict[str, type[int] | type[float]]] = {
    "wait_replicas": int,
    "wait_s": float,
    "retry_for_s": float,
    "max_checkpoint_bytes": int,
}
"""Options that a URL may set: a command line names its store by a URL alone."""


def with_url_options(url: str, options: SaverOptions) -> tuple[str, SaverOptions]:
    """Take the saver's own options out of a URL; they take the place of the given ones.

    Raises:
        StoreConfigError: A value is no number, or cannot work.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    own = {name: value for name, value in query.items() if name in URL_OPTIONS}
    if not own:
        return url, options
    numbers: dict[str, int | float] = {}
    for name, value in own.items():
        try:
            numbers[name] = URL_OPTIONS[name](value)
        except ValueError:
            numbers[name] = math.nan
        if not math.isfinite(numbers[name]):
            raise StoreConfigError(
                f"checkpoint URL {redact(url)!r} has {name}={value}, it must be a number"
            )
    # mypy cannot see that each number goes to the field of its type.
    changed = replace(options, **numbers)  # type: ignore[arg-type]
    return unsplit(without_options(parts, URL_OPTIONS)), changed


@dataclass(frozen=True, slots=True)
class LoopSession:
    """What a saver owns in one event loop."""

    store: Store
    envelope: Envelope
    writer: Writer
    leases: Leases
    sweeper: RegistrySweeper


def open_session(url: str, options: SaverOptions, held: dict[str, Fence]) -> LoopSession:
    """Make a session that shares leases by thread; nothing is sent until its first command."""
    url, options = with_url_options(url, options)
    connection = connect(
        url, max_connections=options.max_connections, connect_timeout_s=options.open_for_s
    )
    store = Store(
        connection,
        options.prefix,
        StoreRetry(connection.where, options.retry_for_s),
        options.reply_timeout_s,
        asyncio.Semaphore(connection.num_at_once),
        options.wait_replicas,
        int(options.wait_s * 1000),
    )
    envelope = Envelope(
        options.compression,
        options.encryption_keys,
        read_older=options.read_older,
        max_bytes=options.max_checkpoint_bytes,
    )
    leases = Leases(store, held, options.ttl_s)
    sweeper = RegistrySweeper(store)
    writer = Writer(store, envelope, leases, options.ttl_s, sweeper.nudge)
    return LoopSession(store, envelope, writer, leases, sweeper)


class LoopThread:
    """An event loop in a thread, to which sync code hands coroutines.

    The thread is a daemon: a process whose saver was not closed still ends. With anyio's portal it
    would wait for ever.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="checkpoints", daemon=True)
        self._thread.start()

    def run(self, call: Call[T]) -> T:
        """Run a coroutine to its end; a Ctrl-C while waiting cancels it."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and the thread; a call that is under way is cancelled."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        # At its end a runner cancels what is under way and closes the loop.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()


class LoopSessions:
    """A session for each event loop: connections belong to the loop that opened them.

    So one saver serves `asyncio.run` twice, several threads, and sync code, whose calls run in a
    loop of their own. A sync call from inside a running loop blocks that loop, but does not
    deadlock.
    """

    def __init__(self, make: Callable[[], LoopSession]) -> None:
        self._make = make
        self._by_loop: dict[asyncio.AbstractEventLoop, _Kept] = {}
        self._unused: LoopSession | None = make()
        """For the first loop that asks; made at once, so that wrong options are told at once."""
        self._sync: LoopThread | None = None
        """The loop of sync code; None until its first call."""
        self._pid = os.getpid()
        self._inherited: list[object] = []
        """What belongs to the processes that this one was forked from; to close it would close
        theirs."""
        self._lock = threading.Lock()

    def get(self) -> LoopSession:
        """Return the running loop's session; outside of a loop that of the next one."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        with self._lock:
            self._leave_to_parent()
            if loop is not None and (kept := self._by_loop.get(loop)) is not None:
                return kept.session
            session = self._unused = self._unused or self._make()
            if loop is not None:
                # Sessions of loops that have ended are closed, and large.
                left = {one: kept for one, kept in self._by_loop.items() if not one.is_closed()}
                self._by_loop, self._unused = {**left, loop: _Kept(session)}, None
            return session

    def run(self, call: Call[T]) -> T:
        """Run a coroutine for sync code."""
        with self._lock:
            self._leave_to_parent()
            thread = self._sync = self._sync or LoopThread()
        return thread.run(call)

    def close_sync(self) -> None:
        """End the loop of sync code, and its session with it."""
        with self._lock:
            self._leave_to_parent()
            thread, self._sync = self._sync, None
        if thread is not None:
            thread.stop()

    async def close(self) -> None:
        """Close the sessions of all loops that run; a loop that has ended took its own."""
        self.close_sync()
        with self._lock:
            sessions, self._by_loop = self._by_loop, {}
        here = sessions.pop(asyncio.get_running_loop(), None)
        if here is not None:
            await here.close()
        for loop, kept in sessions.items():
            if loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(kept.close(), loop))

    def _leave_to_parent(self) -> None:
        """Forget, in a forked process, what belongs to its parent."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._inherited += (self._by_loop, self._unused, self._sync)
            self._by_loop, self._unused, self._sync = {}, None, None


class _Kept:
    """A session that is closed with the loop in which it is made."""

    def __init__(self, session: LoopSession) -> None:
        self.session = session
        # A loop tells nobody that it ends, but it closes what generates in it, as its last act.
        self._end = self._until_the_end()
        with suppress(StopIteration):
            self._end.asend(None).send(None)  # up to the yield, where nothing is awaited

    async def close(self) -> None:
        """Close the session now."""
        await self._end.aclose()

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.session.store.close()


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
    replicas: int | None = None
    """How many are connected to it; None when it does not say."""


async def examine(store: Store) -> Health:
    """Ask the server what it is."""
    where = store.connection.where
    info = await _ask(store, "INFO", "server")
    settings: dict[str, str] = {}
    for name in ("appendonly", "appendfsync", "maxmemory-policy"):
        settings |= await _ask(store, "CONFIG GET", name)
    appendonly = settings.get("appendonly", UNKNOWN)
    policy = settings.get("maxmemory-policy", UNKNOWN)
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
    connected = (await _ask(store, "INFO", "replication")).get("connected_slaves")
    replicas = None if connected is None else int(connected)
    if replicas is not None and replicas < store.wait_replicas:
        warnings.append(
            f"Redis at {where} has {replicas} replicas and wait_replicas is "
            f"{store.wait_replicas}: no write can be confirmed; connect a replica, or lower it"
        )
    name = info.get("server_name", "redis")
    version = info.get(f"{name}_version", info.get("redis_version", UNKNOWN))
    return Health(
        where=where,
        server=f"{name} {version}",
        mode=info.get("redis_mode", info.get("server_mode", UNKNOWN)),
        appendonly=appendonly,
        appendfsync=settings.get("appendfsync", UNKNOWN),
        maxmemory_policy=policy,
        persistent=None if appendonly == UNKNOWN else appendonly == "yes",
        warnings=tuple(warnings),
        replicas=replicas,
    )


@dataclass(frozen=True, slots=True)
class StoreTrial:
    """What a trial write showed, and what a server says of its room, its disk and its clock.

    None stands for what it does not tell. Of a cluster it is one node's.
    """

    refused: SaverError | None
    """Why the write failed; None where it was stored, read again and removed."""
    used_bytes: int | None
    """Memory that the server uses."""
    limit_bytes: int | None
    """Its maxmemory; 0 is no limit."""
    machine_bytes: int | None
    """Memory of its machine."""
    append_only: bool | None
    """Whether it has an append-only file now."""
    log_ok: bool | None
    """Whether the last write to the append-only file succeeded."""
    rewrite_ok: bool | None
    """Whether the last rewrite of it did."""
    save_ok: bool | None
    """Whether the last snapshot did."""
    clock_ahead_s: float | None
    """Seconds by which its clock is ahead of ours, to within half a round trip."""
    folder: str | None
    """Where it keeps its files, on its machine."""
    process_id: int | None
    """Its process, on its machine."""


TRIAL_BYTES: Final = 65_536
"""Size of the trial: about a small run's."""
TRIAL_TTL_MS: Final = 60_000
"""The key of a trial that was killed expires after so many milliseconds."""


async def try_out(store: Store, for_s: float) -> StoreTrial:
    """Write, read and remove a key of `TRIAL_BYTES`; ask for memory, files and clock.

    What the server refuses is tried for `for_s` seconds. The trial has a time to live from the
    first, so that nothing of it stays after a crash.
    """
    refused: SaverError | None = None
    try:
        await _write_trial(store, for_s)
    except SaverError as error:
        refused = error
    memory = await _ask(store, "INFO", "memory")
    files = await _ask(store, "INFO", "persistence")
    began = time.time()
    try:
        told = await store.call("TIME")
    except SaverError:
        told = None
    ended = time.time()
    ahead = None
    if isinstance(told, (list, tuple)):
        ahead = int(told[0]) + int(told[1]) / 1e6 - (began + ended) / 2
    return StoreTrial(
        refused=refused,
        used_bytes=_number(memory.get("used_memory")),
        limit_bytes=_number(memory.get("maxmemory")),
        machine_bytes=_number(memory.get("total_system_memory")),
        append_only=_flag(files.get("aof_enabled"), "1"),
        log_ok=_flag(files.get("aof_last_write_status"), "ok"),
        rewrite_ok=_flag(files.get("aof_last_bgrewrite_status"), "ok"),
        save_ok=_flag(files.get("rdb_last_bgsave_status"), "ok"),
        clock_ahead_s=ahead,
        folder=(await _ask(store, "CONFIG GET", "dir")).get("dir"),
        process_id=_number((await _ask(store, "INFO", "server")).get("process_id")),
    )


async def _write_trial(store: Store, for_s: float) -> None:
    key = f"{store.prefix}:trial:{os.urandom(8).hex()}"
    # Random bytes, since compressible ones would take less room on a disk.
    value = os.urandom(TRIAL_BYTES)
    try:
        # Each write shows what the one before it has filled: the memory, or the disk.
        for each in (value, value[::-1]):
            await store.brief(("SET", key, each, "PX", TRIAL_TTL_MS), for_s)
        if await store.brief(("GET", key), for_s) != value[::-1]:
            reply = "it returned another value than it was given"
            raise StoreRefusedError(store.connection.where, "ERR", reply)
        await store.brief(("UNLINK", key), for_s)
    except BaseException:
        # A full server still deletes. If this one cannot, the key expires.
        with suppress(SaverError):
            await store.brief(("UNLINK", key), 0.0)
        raise


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _flag(text: str | None, yes: str) -> bool | None:
    return None if text is None else text == yes


async def _ask(store: Store, command: str, subject: str) -> dict[str, str]:
    """Return the answer of one node; empty where a managed server forbids the command."""
    try:
        reply = await store.call(command, subject) or {}
    except StoreRefusedError:
        return {}
    # A cluster client may answer by node.
    first = next(iter(reply.values()), None)
    facts = first if isinstance(first, dict) else reply
    return {_text(name): _text(value) for name, value in facts.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
