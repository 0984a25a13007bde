"""A replica takes over, a slot moves: the run goes on, and what was lost is said."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fan_out
import pytest
import redis
from langgraph.checkpoint.base import empty_checkpoint
from pdr_checkpoints import (
    CheckpointLostError,
    LeaseLostError,
    NotReplicatedError,
    RedisSaver,
    StoreConfigError,
    StoreRefusedError,
    StoreUnreachableError,
)
from pdr_checkpoints.keys import thread_keys
from pdr_checkpoints.session import SaverOptions, with_url_options
from redis_servers import CLUSTER_PORTS, Server
from test_crash import wait_for_drafts
from test_saver import put

PROMPT = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
"""A replica joins within a second."""


def until(is_so: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def admin(server: Server) -> redis.Redis:
    assert server.port is not None
    return redis.Redis(port=server.port)


def follow(replica: Server, master: Server) -> None:
    """Make one server the replica of another, and wait until it has caught up."""
    with admin(replica) as client:
        client.replicaof("127.0.0.1", master.port)
        until(lambda: client.info("replication").get("master_link_status") == "up")


@dataclass
class Watched:
    """A master with a replica, and a sentinel that watches them."""

    master: Server
    replica: Server
    sentinel: Server

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel.port}/main/0"

    def fail_over(self) -> None:
        """Kill the master, and wait until the replica has its place."""
        self.master.kill()
        with admin(self.replica) as client:
            until(lambda: client.info("replication")["role"] == "master")
        self.master, self.replica = self.replica, self.master

    def hand_over(self) -> None:
        """Have the sentinel promote the replica; the old master lives, and takes no more writes."""
        with admin(self.sentinel) as client:
            until(lambda: client.execute_command("SENTINEL FAILOVER", "main"))
        with admin(self.replica) as client:
            until(lambda: client.info("replication")["role"] == "master")
        self.master, self.replica = self.replica, self.master

    def recover(self) -> None:
        """Start the old master again if it is dead, and make it a replica."""
        if self.replica.process is None:
            self.replica.start()
        follow(self.replica, self.master)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Start a master, a replica and a sentinel, which promotes the replica within a second."""
    servers = [Server("valkey", tmp_path_factory.mktemp("pair"), PROMPT) for _ in range(2)]
    folder = tmp_path_factory.mktemp("sentinel")
    sentinel = Server("valkey", folder)
    try:
        master, replica = (server.start() for server in servers)
        follow(replica, master)
        rules = folder / "sentinel.conf"
        rules.write_text(
            f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 300\n"
            "sentinel failover-timeout main 1000\n"
        )
        sentinel.start_sentinel(rules)
        with admin(sentinel) as client:
            until(lambda: client.execute_command("SENTINEL REPLICAS", "main"))
        yield Watched(master, replica, sentinel)
    finally:
        for server in (*servers, sentinel):
            server.stop()


async def step(
    saver: RedisSaver, where: dict[str, Any], values: dict[str, Any], *changed: str
) -> dict[str, Any]:
    """Store a checkpoint after another, of which only some channels changed."""
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = values
    later = dict.fromkeys(changed, f"00000002.{checkpoint['id']}")
    checkpoint["channel_versions"] = dict.fromkeys(values, "00000001.a") | later
    versions = {name: checkpoint["channel_versions"][name] for name in changed or values}
    return await saver.aput(where, checkpoint, {"step": 0}, versions)


@pytest.mark.parametrize("promote", [Watched.fail_over, Watched.hand_over])
async def test_a_run_goes_on_when_a_sentinel_promotes_a_replica(
    watched: Watched,
    open_saver: Callable[..., RedisSaver],
    tmp_path: Path,
    promote: Callable[[Watched], None],
) -> None:
    """The master is killed or demoted in mid-round: no draft is made twice, the state is whole."""
    saver = open_saver(watched.url)
    drafter = fan_out.Drafter(tmp_path, held=frozenset({5, 6, 7}))
    graph = fan_out.build(drafter, checkpointer=saver)
    async with saver.lease("t") as lease:
        run = asyncio.create_task(graph.ainvoke(fan_out.start(rounds=2), fan_out.config("t")))
        await wait_for_drafts(saver, "t", 5)
        await asyncio.to_thread(promote, watched)
        (tmp_path / "go").touch()
        final = await run
        assert not lease.lost.is_set()
    lines = (tmp_path / "finished").read_text().split()
    assert len(lines) == len(set(lines)) == 16
    assert (await graph.aget_state(fan_out.config("t"))).values == final
    await asyncio.to_thread(watched.recover)


async def test_sentinels_may_have_a_password_of_their_own(
    watched: Watched, open_saver: Callable[..., RedisSaver]
) -> None:
    """It stands in the query; what stands before the host is for the data servers."""
    with admin(watched.sentinel) as client:
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">secret")
        try:
            await put(open_saver(f"{watched.url}?sentinel_password=secret"), "t", {"a": 1})
            with pytest.raises(StoreUnreachableError, match="No master found for 'main'") as found:
                await put(open_saver(f"{watched.url}?sentinel_password=no", retry_for_s=0), "t", {})
            assert "sentinel_password" not in str(found.value)
        finally:
            client.execute_command("ACL", "SETUSER", "default", "nopass")


async def test_a_write_counts_when_the_replicas_have_it(
    watched: Watched, open_saver: Callable[..., RedisSaver], prefix: str
) -> None:
    """With `wait_replicas` in the URL a write waits for a replica, and then it is there."""
    saver = open_saver(f"{watched.url}?wait_replicas=1&wait_s=0.2")
    await put(saver, "t", {"a": 1})
    with admin(watched.replica) as client:
        assert client.exists(thread_keys(prefix, "t").data)
    assert watched.replica.process is not None
    watched.replica.process.send_signal(signal.SIGSTOP)
    try:
        late = asyncio.create_task(put(saver, "t", {"a": 2}))
        await asyncio.sleep(0.5)
        assert not late.done()
    finally:
        watched.replica.process.send_signal(signal.SIGCONT)
    await late
    assert (await saver.health()).replicas == 1


async def test_a_refused_write_leaves_no_reply_behind(
    watched: Watched, open_saver: Callable[..., RedisSaver]
) -> None:
    """What is sent with a write is answered even where the write is refused."""
    saver, other = (open_saver(f"{watched.url}?wait_replicas=1&max_connections=1") for _ in "ab")
    async with saver.lease("t", ttl_s=60):
        with admin(watched.master) as client:
            client.delete(thread_keys(saver.options.prefix, "t").lease)
        async with other.lease("t"):
            for _ in range(2):
                with pytest.raises(LeaseLostError):
                    await put(saver, "t", {"a": 1})
            where = await put(saver, "u", {"a": 2})
            found = await saver.aget_tuple(where)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": 2}


async def test_too_few_replicas_stop_a_run_in_a_sentence(
    watched: Watched, open_saver: Callable[..., RedisSaver]
) -> None:
    """Nothing is acknowledged that a failover could lose; opening warns of it."""
    saver = open_saver(f"{watched.url}?wait_replicas=2&wait_s=0.05&retry_for_s=0.2")
    sentence = r"0 of 2|1 of 2 replicas confirmed a write within .* bring the replicas back"
    with pytest.raises(NotReplicatedError, match=sentence):
        await put(saver, "t", {"a": 1})
    (warning,) = [text for text in (await saver.health()).warnings if "replicas" in text]
    assert "has 1 replicas and wait_replicas is 2" in warning


async def test_a_lost_checkpoint_is_said_and_the_next_is_whole(
    watched: Watched, open_saver: Callable[..., RedisSaver], caplog: pytest.LogCaptureFixture
) -> None:
    """The replica had not got the last checkpoint: the next one does not rely on it."""
    saver, where = (
        open_saver(watched.url),
        {"configurable": {"thread_id": "t", "checkpoint_ns": ""}},
    )
    text = "long " * 1000
    async with saver.lease("t"):
        first = await step(saver, where, {"a": text, "b": 1})
        with admin(watched.master) as client:
            client.wait(1, 2000)
        with admin(watched.replica) as client:
            client.replicaof("127.0.0.1", 1)  # it does not hear of what follows
        lost = await step(saver, first, {"a": text, "b": 2, "c": text + "new"}, "b", "c")
        await asyncio.to_thread(watched.fail_over)
        with caplog.at_level(logging.WARNING, logger="pdr_checkpoints"):
            values = {"a": text, "b": 3, "c": text + "new"}
            last = await step(saver, lost, values, "b")
    assert f"saver.lost thread=t checkpoint={lost['configurable']['checkpoint_id']}" in caplog.text
    found = await saver.aget_tuple(last)
    assert found is not None
    assert found.checkpoint["channel_values"] == values
    ids = [one.config async for one in saver.alist(where)]
    assert ids == [last, first]
    await asyncio.to_thread(watched.recover)


async def test_a_lost_checkpoint_that_a_delta_channel_needs_stops_the_run(
    saver: RedisSaver,
) -> None:
    """Such a channel is rebuilt from ancestors: a checkpoint without them would be wrong."""
    where = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    first = await step(saver, where, {"a": 1})
    await saver.adelete_thread("t")
    checkpoint = empty_checkpoint()
    checkpoint["channel_versions"] = {"items": "00000001.a"}
    metadata: Any = {"step": 1, "counters_since_delta_snapshot": {"items": (1, 1)}}
    with pytest.raises(CheckpointLostError, match="channels items are rebuilt from it"):
        await saver.aput(first, checkpoint, metadata, {})
    metadata["counters_since_delta_snapshot"] = {"never written": (0, 1)}
    await saver.aput(first, checkpoint, metadata, {})


# A cluster


@dataclass
class Pair:
    """Two masters that share the slots, the first with a replica."""

    nodes: list[Server]
    replica: Server

    @property
    def url(self) -> str:
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port},127.0.0.1:{self.nodes[1].port}"

    def owner(self, slot: int) -> tuple[Server, Server]:
        """Return the node that has a slot, and the other one."""
        with admin(self.nodes[0]) as client:
            lines = _raw(client, "CLUSTER", "NODES").decode().splitlines()
        mine = next(line for line in lines if "myself" in line)
        ranges = [part.split("-") for part in mine.split()[8:] if "[" not in part]
        first = any(int(low[0]) <= slot <= int(low[-1]) for low in ranges)
        return (self.nodes[0], self.nodes[1]) if first else (self.nodes[1], self.nodes[0])


def _raw(client: redis.Redis, *command: Any) -> Any:
    """Return a reply as the server sent it."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Start a cluster of two masters and a replica."""
    extra = (*PROMPT, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    folders = [tmp_path_factory.mktemp("node") for _ in range(3)]
    servers = [Server("valkey", folder, extra, CLUSTER_PORTS) for folder in folders]
    try:
        for number, server in enumerate(servers):
            server.start()
            with admin(server) as client:
                _raw(client, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number < 2:
                    _raw(client, "CLUSTER", "ADDSLOTSRANGE", 8192 * number, 8192 * number + 8191)
        with admin(servers[0]) as client:
            for server in servers[1:]:
                _raw(client, "CLUSTER", "MEET", "127.0.0.1", server.port)
            first = _raw(client, "CLUSTER", "MYID")
        for server in servers:
            with admin(server) as client:
                until(lambda c=client: b"cluster_state:ok" in _raw(c, "CLUSTER", "INFO"))
                until(lambda c=client: len(_raw(c, "CLUSTER", "NODES").splitlines()) == 3)
        with admin(servers[2]) as client:
            _raw(client, "CLUSTER", "REPLICATE", first)
            until(lambda: client.info("replication").get("master_link_status") == "up")
        yield Pair(servers[:2], servers[2])
    finally:
        for server in servers:
            server.stop()


class Move:
    """A slot on its way from one node to another."""

    def __init__(self, pair: Pair, slot: int) -> None:
        self.slot = slot
        self.source, self.target = map(admin, pair.owner(slot))
        self.ids = [_raw(node, "CLUSTER", "MYID") for node in (self.source, self.target)]
        self.port = pair.owner(slot)[1].port

    def begin(self, *keys: str) -> None:
        """Open the slot on both sides, and move some keys."""
        _raw(self.target, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", self.ids[0])
        _raw(self.source, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.ids[1])
        self._migrate(keys)

    def end(self) -> None:
        """Move the keys that are left, and hand the slot over."""
        while keys := _raw(self.source, "CLUSTER", "GETKEYSINSLOT", self.slot, 10):
            self._migrate(keys)
        for node in (self.target, self.source):
            _raw(node, "CLUSTER", "SETSLOT", self.slot, "NODE", self.ids[1])

    def at_once(self) -> None:
        """Move the slot in one step, as Valkey 9 can."""
        _raw(
            self.source,
            "CLUSTER",
            "MIGRATESLOTS",
            "SLOTSRANGE",
            self.slot,
            self.slot,
            "NODE",
            self.ids[1],
        )
        mine = lambda: _raw(self.target, "CLUSTER", "COUNTKEYSINSLOT", self.slot)  # noqa: E731
        until(lambda: mine() and not _raw(self.source, "CLUSTER", "COUNTKEYSINSLOT", self.slot))

    def _migrate(self, keys: Any) -> None:
        if keys:
            _raw(self.source, "MIGRATE", "127.0.0.1", self.port, "", 0, 5000, "KEYS", *keys)

    def close(self) -> None:
        self.source.close()
        self.target.close()


@asynccontextmanager
async def moving(pair: Pair, key: str) -> AsyncIterator[Move]:
    with admin(pair.nodes[0]) as client:
        move = Move(pair, _raw(client, "CLUSTER", "KEYSLOT", key))
    yield move
    move.close()


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("replicated", [False, True])
async def test_a_run_goes_on_while_its_slot_moves(
    pair: Pair,
    open_saver: Callable[..., RedisSaver],
    prefix: str,
    tmp_path: Path,
    at_once: bool,
    replicated: bool,
) -> None:
    """Half of a thread is on one node, half on the other, for a while: writes wait and arrive."""
    # Only the first node has a replica: to begin there, or to end there.
    names = (f"t{n}" for n in range(100))
    with admin(pair.nodes[0]) as client:
        thread_id = next(
            name
            for name in names
            if pair.owner(_raw(client, "CLUSTER", "KEYSLOT", thread_keys(prefix, name).data))[1]
            is pair.nodes[0]
        )
    keys = thread_keys(prefix, thread_id)
    saver = open_saver(pair.url)
    drafter = fan_out.Drafter(tmp_path, held=frozenset({5, 6, 7}))
    graph = fan_out.build(drafter, checkpointer=saver)
    async with moving(pair, keys.data) as move, saver.lease(thread_id) as lease:
        run = asyncio.create_task(graph.ainvoke(fan_out.start(rounds=2), fan_out.config(thread_id)))
        await wait_for_drafts(saver, thread_id, 5)
        if replicated:
            # From here on the writes go to a node that has a replica.
            saver._session.store.wait_replicas = 1
        if at_once:
            (tmp_path / "go").touch()
            await asyncio.to_thread(move.at_once)
        else:
            await asyncio.to_thread(move.begin, keys.data)
            (tmp_path / "go").touch()
            with pytest.raises(StoreRefusedError, match="is moving this thread to another node"):
                await put(open_saver(pair.url, retry_for_s=0.1), thread_id, {"a": 1})
            assert not run.done()
            await asyncio.to_thread(move.end)
        final = await run
        assert not lease.lost.is_set()
    lines = (tmp_path / "finished").read_text().split()
    assert len(lines) == len(set(lines)) == 16
    assert (await graph.aget_state(fan_out.config(thread_id))).values == final
    if replicated:
        with admin(pair.replica) as client:
            client.execute_command("READONLY")
            assert _raw(client, "EXISTS", keys.data) == 1


async def test_a_run_goes_on_when_a_node_of_a_cluster_hands_over(
    pair: Pair, open_saver: Callable[..., RedisSaver], prefix: str, tmp_path: Path
) -> None:
    """The replica of a node takes its place in mid-round."""
    with admin(pair.nodes[0]) as client:
        thread_id = next(
            f"t{n}"
            for n in range(100)
            if pair.owner(_raw(client, "CLUSTER", "KEYSLOT", thread_keys(prefix, f"t{n}").data))[0]
            is pair.nodes[0]
        )
    saver = open_saver(pair.url)
    drafter = fan_out.Drafter(tmp_path, held=frozenset({5, 6, 7}))
    graph = fan_out.build(drafter, checkpointer=saver)
    async with saver.lease(thread_id):
        run = asyncio.create_task(graph.ainvoke(fan_out.start(rounds=2), fan_out.config(thread_id)))
        await wait_for_drafts(saver, thread_id, 5)
        with admin(pair.replica) as client:
            _raw(client, "CLUSTER", "FAILOVER")
            await asyncio.to_thread(until, lambda: client.info("replication")["role"] == "master")
            (tmp_path / "go").touch()
            final = await run
            assert client.exists(thread_keys(prefix, thread_id).data)
    lines = (tmp_path / "finished").read_text().split()
    assert len(lines) == len(set(lines)) == 16
    assert (await graph.aget_state(fan_out.config(thread_id))).values == final


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("wait_replicas=some", "wait_replicas=some, it must be a number"),
        ("wait_replicas=1.5", "wait_replicas=1.5, it must be a number"),
        ("wait_replicas=-1", "wait_replicas is -1, it must not be negative"),
        ("wait_s=0", "wait_s is 0.0, it must be above 0"),
        ("wait_replicas=1&wait_s=60", "wait_s is 60.0, it must be below reply_timeout_s"),
        ("retry_for_s=nan", "retry_for_s=nan, it must be a number"),
    ],
)
def test_options_of_a_url_are_checked(query: str, sentence: str) -> None:
    """One sentence names the option, the value and the bound; no password is shown."""
    with pytest.raises(StoreConfigError, match=sentence) as refusal:
        RedisSaver(f"redis://:secret@h/0?{query}")
    assert "secret" not in str(refusal.value)


def test_options_of_a_url_are_taken_out_of_it() -> None:
    """redis-py reads the rest, the saver's options take the place of the given ones."""
    given = SaverOptions(retry_for_s=1, wait_replicas=2)
    for url, rest in (
        ("redis://u:p@h:1/0?wait_replicas=1&client_name=me", "redis://u:p@h:1/0?client_name=me"),
        ("unix:///run/s.sock?wait_replicas=1&db=2", "unix:///run/s.sock?db=2"),
        ("unix://u:p@/run/s.sock?wait_replicas=1", "unix://u:p@/run/s.sock"),
        ("redis://h?password=a%2Bb+c&wait_replicas=1", "redis://h?password=a%2Bb+c"),
        ("redis+sentinel://a,b/m/0?wait_replicas=1", "redis+sentinel://a,b/m/0"),
        ("redis+cluster://a:1,b:2?wait_replicas=1", "redis+cluster://a:1,b:2"),
    ):
        bare, options = with_url_options(url, given)
        assert (bare, options.wait_replicas, options.retry_for_s) == (rest, 1, 1)
