"""Ways to a server: TCP, a Unix socket, Sentinel, Cluster; and what is wrong with a URL."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fan_out
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver
from pdr_checkpoints import RedisSaver, StoreConfigError, ThreadBusyError
from pdr_checkpoints.connect import connect, encode_command, redact
from pdr_checkpoints.store import StoreRetry
from redis.asyncio.connection import Connection as LibraryConnection
from redis_servers import CLUSTER_PORTS, Server
from test_saver import put

LIBRARY = LibraryConnection()


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start three nodes of the embedded Valkey that share the slots."""
    extra = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    folders = [tmp_path_factory.mktemp("node") for _ in range(3)]
    nodes = [Server("valkey", folder, extra, CLUSTER_PORTS) for folder in folders]
    try:
        clients = []
        for number, node in enumerate(nodes):
            node.start()
            client = redis.Redis(port=node.port)
            clients.append(client)
            low, high = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
        for node in nodes[1:]:
            clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
        for client in clients:
            while b"cluster_state:ok" not in _cluster_info(client):
                pass
            client.close()
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        yield f"redis+cluster://{hosts}"
    finally:
        for node in nodes:
            node.stop()


def _cluster_info(client: redis.Redis) -> bytes:
    import time

    time.sleep(0.05)
    info = client.execute_command("CLUSTER INFO")
    if isinstance(info, dict):
        return b"".join(f"{name}:{value}\n".encode() for name, value in info.items())
    return info


async def test_cluster_keeps_threads_apart_and_whole(
    cluster_url: str, open_saver: Callable[..., RedisSaver], tmp_path: Path
) -> None:
    """Runs, leases, upkeep and transfer work where threads live on three nodes."""
    saver = open_saver(cluster_url)
    async with saver:
        graph = fan_out.build(fan_out.Drafter(tmp_path), nested=True, checkpointer=saver)

        async def run(thread_id: str) -> None:
            async with saver.lease(thread_id):
                await graph.ainvoke(fan_out.start(rounds=2), fan_out.config(thread_id))

        names = [f"t{number}" for number in range(12)]
        await asyncio.gather(*(run(name) for name in names))
        assert sorted(info.thread_id for info in await saver.threads()) == sorted(names)
        nodes = {
            saver._session.store.connection.client.get_node_from_key(
                saver._session.store.thread(name).data
            ).port
            for name in names
        }
        assert len(nodes) == 3
        async with saver.lease("t0"):
            with pytest.raises(ThreadBusyError):
                async with saver.lease("t0"):
                    pass
        asked: Any = {"config": {"configurable": {"thread_id": "t0"}}, "channels": ["problem"]}
        walked = await BaseCheckpointSaver.aget_delta_channel_history(saver, **asked)
        assert await saver.aget_delta_channel_history(**asked) == walked
        assert walked["problem"]["seed"] == "1 + 1"
        await saver.acopy_thread("t0", "copy")
        await saver.aprune(["t0"], strategy="inspection")
        await saver.aprune(["t0"])
        final = (await graph.aget_state(fan_out.config("t0"))).values
        assert final == (await graph.aget_state(fan_out.config("copy"))).values
        assert len(final["drafts"]) == 16
        await saver.adelete_thread("copy")
        assert len(await saver.threads()) == 12
        assert {name async for name in saver.stored_threads()} == set(names)
        keyed = open_saver(cluster_url, encryption_keys=[b"k" * 32], read_older=True)
        assert await keyed.reseal_thread("t1") > 0
        assert set((await keyed.sealed_by("t1")).counts) == {keyed.seal_name}
        assert (await keyed.seals()).num_threads == 12
        await keyed.reseal_thread("t1", plain=True)
        health = await saver.health()
        assert (health.mode, health.appendonly) == ("cluster", "no")
        assert health.server.startswith("valkey 9")


async def test_unix_socket(
    valkey: Server, open_saver: Callable[..., RedisSaver], prefix: str
) -> None:
    """A saver on the socket sees what one on TCP stored."""
    await put(open_saver(), "t", {"a": 1})
    async with open_saver(valkey.socket_url) as saver:
        found = await saver.aget_tuple({"configurable": {"thread_id": "t"}})
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": 1}


async def test_sentinel_leads_to_the_master(
    valkey: Server,
    open_saver: Callable[..., RedisSaver],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A sentinel URL names hosts, service and database; the data are on the master."""
    folder = tmp_path_factory.mktemp("sentinel")
    rules = folder / "sentinel.conf"
    rules.write_text(f"sentinel monitor main 127.0.0.1 {valkey.port} 1\n")
    sentinel = Server("valkey", folder)
    sentinel.start_sentinel(rules)
    try:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main/0"
        async with open_saver(url) as saver:
            await asyncio.gather(*(put(saver, f"t{n}", {"a": n}) for n in range(100)))
            assert len(await saver.threads()) == 100
        found = await open_saver().aget_tuple({"configurable": {"thread_id": "t7"}})
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": 7}
    finally:
        sentinel.stop()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://localhost", "begins with 'http', it can begin with redis, rediss, unix"),
        ("", "begins with ''"),
        ("redis+sentinel://host", "name the service after the hosts"),
        ("redis+cluster://", "'' is not a host"),
        ("redis+sentinel://h/m?max_connections=0", "max_connections is 0, it must be above 0"),
        ("redis://h:port", "malformed"),
        ("redis://u:secret@h/?max_connections=x", "malformed"),
    ],
)
def test_url_that_cannot_work_is_refused(url: str, sentence: str) -> None:
    """One sentence names the URL, without its password, and what is wrong."""
    with pytest.raises(StoreConfigError, match=sentence) as refusal:
        connect(url, max_connections=1, connect_timeout_s=1)
    assert "secret" not in str(refusal.value)


@pytest.mark.security
def test_passwords_are_hidden() -> None:
    """A URL in a message has no user, password or query."""
    assert redact("rediss://u:p@h:1/0?password=q") == "rediss://h:1/0"
    assert redact("redis+sentinel://u:p@a,b/m/0") == "redis+sentinel://a,b/m/0"
    assert redact("unix:///run/s.sock?password=q") == "unix:///run/s.sock"
    assert redact("unix://u:p@/run/s.sock") == "unix:///run/s.sock"


async def test_health_of_each_server(
    any_server: Server, open_saver: Callable[..., RedisSaver]
) -> None:
    """The server's kind, version and settings; a persistent one gives no warning."""
    health = await open_saver(any_server.url).health()
    expected = {"valkey": "valkey 9", "redis": "redis 7", "redis8": "redis 8"}[any_server.kind]
    assert health.server.startswith(expected)
    assert (health.appendonly, health.maxmemory_policy) == ("yes", "noeviction")
    assert (health.persistent, health.warnings) == (True, ())
    assert health.mode == "standalone"


async def test_server_that_loses_runs_is_warned_of(
    open_saver: Callable[..., RedisSaver],
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No append-only file and an evicting policy are each one sentence, at opening and by name."""
    extra = ("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    server = Server("valkey", tmp_path_factory.mktemp("forgetful"), extra).start()
    try:
        with caplog.at_level(logging.WARNING, logger="pdr_checkpoints"):
            async with open_saver(server.url) as saver:
                health = await saver.health()
        assert health.persistent is False
        assert [warning in caplog.text for warning in health.warnings] == [True, True]
        assert "appendonly no" in health.warnings[0]
        assert "allkeys-lru" in health.warnings[1]
    finally:
        server.stop()


async def test_managed_server_without_config_is_unknown(
    open_saver: Callable[..., RedisSaver], valkey: Server
) -> None:
    """A user that may not call CONFIG, INFO or MEMORY can still keep and list threads."""
    with redis.Redis(port=valkey.port) as admin:
        admin.execute_command(
            "ACL", "SETUSER", "modest", "on", ">p", "~*", "+@all", "-config", "-info", "-memory"
        )
    url = valkey.url.replace("redis://", "redis://modest:p@")
    async with open_saver(url) as saver:
        health = await saver.health()
        await put(saver, "t", {"a": 1})
        (info,) = await saver.threads()
    assert (health.appendonly, health.persistent, health.warnings) == ("unknown", None, ())
    assert info.num_bytes is None


async def test_wrong_password_is_not_retried(
    open_saver: Callable[..., RedisSaver], redis_url: str
) -> None:
    """A refusal that a second try does not cure is reported at once."""
    saver = open_saver(redis_url.replace("redis://", "redis://nobody:wrong@"))
    with pytest.raises(StoreConfigError, match="refused the client"):
        async with saver:
            pass


async def test_retry_gives_up_after_its_time() -> None:
    """Pauses double, and the last error is shown."""
    from pdr_checkpoints import StoreUnreachableError

    tries = 0

    async def fail() -> None:
        nonlocal tries
        tries += 1
        raise redis.ConnectionError("gone")

    with pytest.raises(StoreUnreachableError, match="gone"):
        await StoreRetry("here", total_s=0.4, first_s=0.01)(fail)
    assert 4 <= tries <= 8


@given(st.lists(st.one_of(st.binary(), st.text(), st.integers()), min_size=1))
def test_a_command_is_written_as_the_library_writes_it(arguments: list[bytes | str | int]) -> None:
    """Byte for byte, whatever the arguments hold."""
    command = ["EVAL", *(text for text in arguments if _is_utf8(text))]
    assert encode_command(command) == b"".join(LIBRARY.pack_command(*command))


def _is_utf8(argument: bytes | str | int) -> bool:
    return not isinstance(argument, str) or not any("\ud800" <= c <= "\udfff" for c in argument)


async def test_an_idle_connection_that_the_server_closed_is_replaced(
    saver: RedisSaver, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No try fails: a server may close connections that are idle for long."""
    await put(saver, "t", {"a": 1})
    with redis.Redis.from_url(redis_url) as client:
        client.client_kill_filter(_type="normal", skipme=True)
    await asyncio.sleep(0.05)
    with caplog.at_level(logging.WARNING):
        await put(saver, "t", {"a": 2})
    assert caplog.records == []


async def test_connections_are_bounded(
    open_saver: Callable[..., RedisSaver], prefix: str, redis_url: str
) -> None:
    """Connections in use and idle ones, of writes and reads, are together within the bound."""
    saver = open_saver(f"{redis_url}?client_name={prefix}", max_connections=4)
    where = await put(saver, "t", {"a": 1})
    writes = [saver.aput_writes(where, [("a", "x" * 40_000)], f"task-{n}") for n in range(24)]
    reads = [saver.aget_tuple(where) for _ in range(24)]
    await asyncio.gather(*(call for pair in zip(writes, reads, strict=True) for call in pair))
    with redis.Redis.from_url(redis_url) as client:
        mine = [one for one in client.client_list() if one["name"] == prefix]
    assert 1 < len(mine) <= 4


async def test_a_url_may_bound_connections(
    open_saver: Callable[..., RedisSaver], prefix: str, redis_url: str
) -> None:
    """The URL's bound counts, and connections kept idle after writes leave some for reads."""
    url = f"{redis_url}?client_name={prefix}&max_connections=2"
    saver = open_saver(url, retry_for_s=0)
    where = await put(saver, "t", {"a": 1})
    writes = [saver.aput_writes(where, [("a", f"{n}" * 200_000)], f"task-{n}") for n in range(8)]
    await asyncio.gather(*writes)
    assert await saver.aget_tuple(where) is not None
    with redis.Redis.from_url(redis_url) as client:
        mine = [one for one in client.client_list() if one["name"] == prefix]
    assert len(mine) == 2


async def test_a_cluster_url_may_bound_connections() -> None:
    """The bound of the URL takes the place of the option, as with one server."""
    url = "redis+cluster://127.0.0.1:1?max_connections=3"
    connection = connect(url, max_connections=32, connect_timeout_s=1)
    assert connection.num_at_once == 3
    await connection.close()


async def test_a_cancelled_caller_gives_its_connection_back(
    open_saver: Callable[..., RedisSaver], redis_url: str
) -> None:
    """A caller that replaces a closed idle connection does so too."""
    saver = open_saver(max_connections=4)
    await put(saver, "t", {"a": 1})
    connection = saver._session.store.connection
    assert isinstance(connection.client, redis.asyncio.Redis)
    pool = connection.client.connection_pool
    for num_turns in range(12):
        with redis.Redis.from_url(redis_url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.02)
        writing = asyncio.create_task(put(saver, "t", {"a": 2}))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        # Another task may be sending the write still: then it gives the connection back soon.
        for _ in range(300):
            if len(pool._in_use_connections) == len(connection.kept):
                break
            await asyncio.sleep(0.01)
        assert len(pool._in_use_connections) == len(connection.kept)
        await put(saver, "t", {"a": 3})
