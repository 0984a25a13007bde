"""The registry of threads shrinks by itself, and no command holds the server up."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import redis
from pdr_checkpoints import RedisSaver, SaverOptions
from pdr_checkpoints import keys as names
from pdr_checkpoints.connect import Argument, Connection
from pdr_checkpoints.registry import (
    CLUSTER_GRACE_MS,
    GONE,
    PAGE,
    SETTLE,
    registration,
    settle,
    sweep,
    walk,
)
from pdr_checkpoints.session import LoopSessions
from pdr_checkpoints.store import Command, Store
from test_saver import put

MOST = 1100
"""Items of a command or its reply: about a millisecond of the server's time."""


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """Look at what is stored."""
    with redis.Redis.from_url(redis_url) as opened:
        yield opened


def entries(client: redis.Redis, prefix: str) -> list[str]:
    """Return the threads of both sorted sets."""
    keys = names.registry_keys(prefix)
    found = {*client.zrange(keys.threads, 0, -1), *client.zrange(keys.expiries, 0, -1)}
    return sorted(name.decode() for name in found)


def enlist(client: redis.Redis, prefix: str, threads: list[str], *, expires_ms: int | None) -> None:
    """Write the entries of threads that are gone, as the saver does."""
    keys = names.registry_keys(prefix)
    client.zadd(keys.threads, dict.fromkeys(threads, 1_700_000_000_000))
    if expires_ms is not None:
        client.zadd(keys.expiries, dict.fromkeys(threads, expires_ms))


async def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_a_writer_removes_the_entries_of_expired_threads(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """Nobody lists them, and a thread that goes on or never expires keeps its entry."""
    saver, keeps = open_saver(ttl_s=0.3), open_saver()
    for n in range(5):
        await put(saver, f"gone-{n}", {"a": n})
    await put(keeps, "kept", {"a": 1})
    await put(saver, "goes on", {"a": 1})
    assert len(entries(client, prefix)) == 7
    await asyncio.sleep(0.4)
    longer = open_saver(ttl_s=60)
    await put(longer, "goes on", {"a": 2})
    await until(lambda: entries(client, prefix) == ["goes on", "kept"])


async def test_whoever_opens_a_store_sweeps_it(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """A store that is never written to again leaves nothing behind, the keys of upkeep included."""
    enlist(client, prefix, [f"t{n}" for n in range(3 * PAGE + 1)], expires_ms=1)
    async with open_saver():
        await until(lambda: client.keys(f"{prefix}*") == [])


async def test_the_sync_saver_sweeps_too(redis_url: str, client: redis.Redis, prefix: str) -> None:
    """Opening it in plain code is enough."""
    enlist(client, prefix, ["a", "b"], expires_ms=1)
    with RedisSaver(redis_url, options=SaverOptions(prefix=prefix)):
        await until(lambda: client.keys(f"{prefix}*") == [])


async def test_a_thread_that_pending_writes_keep_alive_stays_listed(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """Its entry is overdue, but the thread is there: the expiry is corrected, the entry stays."""
    saver = open_saver(ttl_s=60)
    where = await put(saver, "t", {"a": 1})
    keys = names.registry_keys(prefix)
    client.zadd(keys.expiries, {"t": 1})
    await saver.aput_writes(where, [("a", 2)], "task")
    await sweep(saver._session.store)
    assert entries(client, prefix) == ["t"]
    assert client.zscore(keys.expiries, "t") == pytest.approx(time.time() * 1000 + 60_000, abs=9000)


async def test_a_thread_that_no_longer_expires_stays_listed(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """Somebody has made its keys last: it is looked at once, and then no more."""
    saver = open_saver(ttl_s=60)
    await put(saver, "t", {"a": 1})
    keys, thread = names.registry_keys(prefix), names.thread_keys(prefix, "t")
    client.persist(thread.data)
    client.zadd(keys.expiries, {"t": 1})
    await sweep(saver._session.store)
    assert client.zrange(keys.threads, 0, -1) == [b"t"]
    assert client.zcard(keys.expiries) == 0


async def test_a_registry_of_an_earlier_release_is_taken_over(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """Entries without expiry: what is gone goes, what expires is noted, what stays is left."""
    saver, expiring = open_saver(), open_saver(ttl_s=60)
    await put(saver, "kept", {"a": 1})
    await put(expiring, "expiring", {"a": 1})
    keys = names.registry_keys(prefix)
    client.delete(keys.expiries)
    gone = [f"gone-{n}" for n in range(2 * PAGE)]
    enlist(client, prefix, gone, expires_ms=None)
    client.zadd(keys.threads, {"gone, the latest": 9e12})
    await walk(saver._session.store)
    assert entries(client, prefix) == ["expiring", "kept"]
    assert client.zrange(keys.expiries, 0, -1) == [b"expiring"]


async def test_a_registry_is_walked_through_once_a_day(
    saver: RedisSaver, client: redis.Redis, prefix: str
) -> None:
    """A second process leaves it to the first."""
    await put(saver, "t", {"a": 1})
    await walk(saver._session.store)
    enlist(client, prefix, ["gone"], expires_ms=None)
    await walk(saver._session.store)
    assert entries(client, prefix) == ["gone", "t"]
    assert 0 < client.ttl(names.registry_keys(prefix).walked) <= 24 * 3600


async def test_a_thread_that_begins_anew_while_it_is_swept_stays(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """Writers and sweepers at the same time, with threads that come and go: none is lost."""
    saver, other = open_saver(ttl_s=0.05), open_saver()
    ending = time.monotonic() + 1.0

    async def sweeping() -> None:
        while time.monotonic() < ending:
            await sweep(other._session.store)

    async def writing(thread_id: str) -> None:
        for n in itertools.count():
            if time.monotonic() > ending:
                break
            await put(saver, thread_id, {"a": n})
            assert thread_id in entries(client, prefix)
            await asyncio.sleep(0.03 + 0.04 * (n % 2))

    await asyncio.gather(sweeping(), sweeping(), *(writing(f"t{n}") for n in range(4)))


async def test_a_young_entry_of_a_cluster_is_left(
    saver: RedisSaver, client: redis.Redis, prefix: str
) -> None:
    """There an entry is written before its thread: only an old one is known to be left over."""

    class OfCluster(Connection):
        is_cluster = True  # type: ignore[assignment]

    store = saver._session.store
    same = {one.name: getattr(store.connection, one.name) for one in fields(Connection)}
    clustered = replace(store, connection=OfCluster(**same))
    keys, now = names.registry_keys(prefix), int(time.time() * 1000)
    client.zadd(keys.threads, {"young": now, "old": now - CLUSTER_GRACE_MS - 1})
    assert await settle(clustered, [b"young", b"old"]) == 1
    assert client.zrange(keys.threads, 0, -1) == [b"young"]
    assert client.zscore(keys.expiries, "young") == now + CLUSTER_GRACE_MS


async def test_a_lease_of_an_expiring_thread_leaves_its_counter_no_longer(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """The counter of leases goes with the thread, not a month later; an hour is the least."""
    for ttl_s, expected_s in ((2 * 3600, 2 * 3600), (1, 3600), (None, 30 * 24 * 3600)):
        async with open_saver(ttl_s=ttl_s).lease(f"t{ttl_s}"):
            pass
        left = client.ttl(names.thread_keys(prefix, f"t{ttl_s}").fence)
        assert expected_s - 60 < left <= expected_s


async def test_a_list_misses_no_thread_while_others_are_swept(
    saver: RedisSaver, client: redis.Redis, prefix: str
) -> None:
    """Entries go while the list is read: those that stay are all in it, each once."""
    keys = names.registry_keys(prefix)
    for spread in (1, 0):  # of many times, or all of one
        client.zadd(keys.threads, {f"t{n}": 1_000 + n * spread for n in range(500)})
        found = []
        async for thread_id in saver.thread_ids():
            found.append(thread_id)
            if len(found) == 120:
                client.zrem(keys.threads, *found[:100])
        assert len(found) == len(set(found))
        if spread:
            assert set(found) == {f"t{n}" for n in range(500)}
        else:
            assert len(found) >= 400


@dataclass
class Measured(Store):
    """Notes the size of each command and of its reply, in items."""

    sizes: list[tuple[int, str]] = field(default_factory=list)

    def note(self, command: Sequence[Any], reply: Any) -> None:
        self.sizes.append((max(len(command), items(reply)), str(command[0])[:60]))

    async def call(self, *command: Argument) -> Any:
        self.note(command, reply := await super().call(*command))
        return reply

    async def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        replies = await super().pipeline(commands)
        for command, reply in zip(commands, replies, strict=True):
            self.note(command, reply)
        return replies

    async def script(self, source: str, keys: Any, arguments: Any, **how: Any) -> Any:
        reply = await super().script(source, keys, arguments, **how)
        self.note((source, *arguments), reply)
        return reply


def items(reply: Any) -> int:
    """Count what is in a reply."""
    return sum(map(items, reply)) if isinstance(reply, list | tuple | dict) else 1


async def test_no_command_grows_with_a_thread(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """A long thread is listed, copied, carried, pruned and deleted in small steps.

    Redis does one thing at a time: a command that takes 40 ms holds up every other run.
    """
    saver = open_saver()
    store = saver._session.store
    num = MOST + 100
    await asyncio.gather(*(put(saver, "t", {"a": n}, run_id="run") for n in range(num)))
    same = {one.name: getattr(store, one.name) for one in fields(store)}
    measured = Measured(**same)
    session = replace(saver._session, store=measured)
    saver._sessions = LoopSessions(lambda: session)
    (info,) = await saver.threads()
    assert info.num_checkpoints == num
    async with aclosing(saver.alist({"configurable": {"thread_id": "t"}}, limit=1)) as history:
        assert await anext(history)
    await saver.acopy_thread("t", "u")
    exported = b"".join([chunk async for chunk in saver.export_thread("t")])

    async def file() -> AsyncIterator[bytes]:
        yield exported

    await saver.import_thread(file(), thread_id="v")
    await saver.aprune(["t"], keep=2)
    assert {i.thread_id: i.num_checkpoints for i in await saver.threads()} == {
        "t": 2,
        "u": num,
        "v": num,
    }
    await saver.adelete_thread("v")
    await saver.adelete_for_runs(["run"])
    assert await saver.threads() == []
    assert [size for size in measured.sizes if size[0] > MOST] == []


async def test_an_entry_of_the_same_moment_is_told_from_the_one_before(
    open_saver: Callable[..., RedisSaver], client: redis.Redis, prefix: str
) -> None:
    """A copy is listed before it is shown and after; who saw the first entry removes no second."""
    saver = open_saver()
    await put(saver, "b", {"n": 1})
    store, keys = saver._session.store, names.registry_keys(prefix)
    first = registration(store, "b", None)
    (_, _, noted, _), *_ = first
    await store.pipeline(first)
    await store.pipeline(registration(store, "b", None, since_ms=int(noted)))
    await store.script(SETTLE, [keys.threads, keys.expiries, keys.walked], [b"b", noted, GONE])
    assert entries(client, prefix) == ["b"]
