"""A server that is full, read-only, locked, busy or killed: a sentence, and a run that resumes."""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from pdr_checkpoints import (
    RedisSaver,
    SaverError,
    SaverOptions,
    StoreConfigError,
    StoreRefusedError,
    StoreUnreachableError,
)
from pdr_checkpoints.connect import code_of
from pdr_checkpoints.errors import REFUSALS
from pdr_checkpoints.keys import registry_keys
from redis import exceptions
from redis_servers import CLUSTER_PORTS, Server
from test_saver import put

from pdr_graph import ChatVLLM, ModelClient, preset, resume, solve
from pdr_graph.cli.failure import explain
from pdr_graph.llm.client import OnChunk, Reply, Sampling
from pdr_graph.llm.pool import make_http_client
from pdr_graph.llm.tokens import ServerCounter
from pdr_graph.llm.usage import Spent
from tests.mock_endpoint import MockEndpoint

PROBLEM = "What is 6 x 7?"
CONFIG = preset("pdr", widths=(6, 2), kappa=256, max_tokens=256, solution_tokens=256, seed=7)
CALLS = 6 + 1 + 2 + 1 + 1
STORED = 4
"""Drafts that are stored when the store fails; the others are under way."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of these tests' own, with an append-only file."""
    options = ("--appendonly", "yes", "--enable-protected-configs", "yes")
    started = Server("valkey", tmp_path_factory.mktemp("outage"), options).start()
    yield started
    started.stop()


@contextmanager
def admin(server: Server) -> Iterator[redis.Redis]:
    """Connect as whoever runs the server, before it fails: afterwards it may let nobody in."""
    assert server.port is not None
    with redis.Redis(port=server.port, single_connection_client=True) as client:
        yield client


class Held(ModelClient):
    """Asks the endpoint, but for the calls after the first few only when it may go on."""

    def __init__(self, mock: MockEndpoint) -> None:
        self.http = make_http_client()
        counter = ServerCounter(self.http, mock.url, "mock-model", "EMPTY")
        self.chat = ChatVLLM(base_url=mock.url, model="mock-model")
        super().__init__(self.chat, counter=counter)
        self.go = asyncio.Event()
        self.num_calls = 0

    async def ask(
        self, prompt: str, sampling: Sampling, spent: Spent, on_chunk: OnChunk | None = None
    ) -> Reply:
        self.num_calls += 1
        if self.num_calls > STORED:
            await self.go.wait()
        return await super().ask(prompt, sampling, spent, on_chunk)


@pytest.fixture
async def model(mock: MockEndpoint) -> AsyncIterator[Held]:
    held = Held(mock)
    yield held
    await held.chat.aclose()
    await held.http.aclose()


def answered(mock: MockEndpoint) -> Counter[str]:
    """Count the calls that got their reply, by prompt and seed."""
    return Counter(
        json.dumps([each["body"]["messages"], each["body"]["seed"]])
        for each in mock.requests()
        if each["status"] == 200
    )


async def num_stored(saver: RedisSaver) -> int:
    found = await saver.aget_tuple({"configurable": {"thread_id": "t"}})
    writes = found.pending_writes or () if found else ()
    return sum(channel == "drafts" for _, channel, _ in writes)


async def begin(saver: RedisSaver, model: Held) -> asyncio.Task[Any]:
    """Start a run, and return when its first drafts are stored and the others under way."""

    async def run() -> Any:
        async with saver.lease("t", ttl_s=1):
            return await solve(PROBLEM, CONFIG, model=model, checkpointer=saver, thread_id="t")

    running = asyncio.create_task(run())
    while await num_stored(saver) < STORED:
        assert not running.done()
        await asyncio.sleep(0.01)
    return running


Failing = Callable[[redis.Redis], Callable[[], Any]]
"""Makes a server fail, and returns what cures it."""


def full(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


def read_only(client: redis.Redis) -> Callable[[], Any]:
    client.replicaof("127.0.0.1", 1)
    return lambda: client.replicaof("NO", "ONE")


def without_master(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("replica-serve-stale-data", "no")
    cure = read_only(client)
    return lambda: (cure(), client.config_set("replica-serve-stale-data", "yes"))


def without_replicas(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("min-replicas-to-write", 1)
    return lambda: client.config_set("min-replicas-to-write", 0)


def locked(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("requirepass", "secret")
    client.client_kill_filter(_type="normal", skipme=True)
    return lambda: client.config_set("requirepass", "")


def forbidden(client: redis.Redis) -> Callable[[], Any]:
    client.execute_command("ACL", "SETUSER", "default", "-hset")
    return lambda: client.execute_command("ACL", "SETUSER", "default", "+hset")


def crowded(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("maxclients", 1)
    client.client_kill_filter(_type="normal", skipme=True)
    return lambda: client.config_set("maxclients", 1000)


def with_full_disk(client: redis.Redis) -> Callable[[], Any]:
    # Its snapshot cannot take the place of a folder, as it could not be written to a full disk.
    folder = Path(client.config_get("dir")["dir"])
    (folder / "taken.rdb" / "inside").mkdir(parents=True, exist_ok=True)
    client.config_set("dbfilename", "taken.rdb")
    client.config_set("save", "3600 1")
    client.bgsave()
    while client.info("persistence")["rdb_bgsave_in_progress"]:
        time.sleep(0.01)
    assert client.info("persistence")["rdb_last_bgsave_status"] == "err"

    def cure() -> None:
        client.config_set("save", "")
        client.config_set("dbfilename", "dump.rdb")

    return cure


def busy(client: redis.Redis) -> Callable[[], Any]:
    client.config_set("busy-reply-threshold", 1)
    port = client.connection_pool.connection_kwargs["port"]
    other = redis.Redis(port=port, socket_timeout=0.1, retry=None)
    with pytest.raises(redis.TimeoutError):
        other.eval("while true do end", 0)
    other.close()

    def cure() -> None:
        client.script_kill()
        while True:
            try:
                client.config_set("busy-reply-threshold", 5000)
            except redis.ResponseError:
                time.sleep(0.01)
            else:
                return

    return cure


FAILINGS: dict[str, tuple[Failing, str]] = {
    "OOM": (full, "is full .*: raise maxmemory"),
    "READONLY": (read_only, "is a read-only replica: name its master"),
    "MASTERDOWN": (without_master, "is a replica that has lost its master: bring the master"),
    "NOREPLICAS": (without_replicas, "has fewer replicas than .*: bring its replicas back"),
    "NOPERM": (forbidden, "does not allow this user a command .*hset.*: grant it by ACL"),
    "MAXCLIENTS": (crowded, "has as many connections as it allows: raise maxclients"),
    "MISCONF": (with_full_disk, "cannot save to its disk.*: free some space"),
    "BUSY": (busy, "is busy with somebody's script: wait for it"),
}


@pytest.mark.parametrize("code", FAILINGS)
async def test_a_server_that_does_not_work_says_why(
    server: Server, open_saver: Callable[..., RedisSaver], code: str
) -> None:
    """One sentence names server, reason and remedy; when that is cured, the saver works again."""
    fail, sentence = FAILINGS[code]
    saver = open_saver(server.url, retry_for_s=0.15)
    await put(saver, "t", {"a": 1})
    with admin(server) as client:
        cure = fail(client)
        try:
            with pytest.raises(
                StoreRefusedError, match=f"Redis at {server.url} {sentence}"
            ) as found:
                await put(saver, "t", {"a": 2})
        finally:
            cure()
    assert found.value.code == code
    assert "\n" not in str(found.value)
    saver._session.store.retry.total_s = 20.0  # a replica takes a moment to be a master again
    await put(saver, "t", {"a": 3})


@pytest.mark.parametrize(
    ("user", "sentence"),
    [
        ("", "wants a password: put it into the URL"),
        (":wrong@", "user or password is wrong: correct them in the URL"),
        ("nobody:wrong@", "user or password is wrong: correct them in the URL"),
    ],
)
async def test_a_wrong_password_is_said_at_once(
    server: Server, open_saver: Callable[..., RedisSaver], user: str, sentence: str
) -> None:
    """The URL is to be corrected, so nothing is tried again, and no password is shown."""
    with admin(server) as client:
        cure = locked(client)
        try:
            saver = open_saver(server.url.replace("redis://", f"redis://{user}"), retry_for_s=30)
            began = time.monotonic()
            with pytest.raises(StoreConfigError, match=sentence) as found:
                await put(saver, "t", {"a": 1})
            assert time.monotonic() - began < 5
            assert "wrong@" not in str(found.value)
        finally:
            cure()


async def test_a_server_that_loads_is_waited_for(
    tmp_path_factory: pytest.TempPathFactory, open_saver: Callable[..., RedisSaver]
) -> None:
    """Killed and restarted with much to load: said when there is no time, else waited for."""
    options = ("--key-load-delay", "15000", "--loading-process-events-interval-bytes", "1024")
    slow = Server("valkey", tmp_path_factory.mktemp("slow"), options).start()
    try:
        saver = open_saver(slow.url, retry_for_s=10)
        # Each is enough for the server to look at its connections while it loads.
        texts = [os.urandom(1500).hex() for _ in range(50)]
        await asyncio.gather(*(put(saver, f"t{n}", {"a": text}) for n, text in enumerate(texts)))
        with admin(slow) as client:
            client.save()
        slow.kill()
        starting = asyncio.create_task(asyncio.to_thread(slow.start))
        hasty = open_saver(slow.url, retry_for_s=0)
        refused: SaverError | None = None
        while not isinstance(refused, StoreRefusedError):
            assert not starting.done()
            with pytest.raises(SaverError) as found:
                await hasty.threads()
            refused = found.value
        assert refused.code == "LOADING"
        assert "is still loading its data" in str(refused)
        assert len(await saver.threads()) == 50
        await starting
    finally:
        slow.stop()


async def test_a_cluster_without_all_slots_says_so(
    tmp_path_factory: pytest.TempPathFactory, open_saver: Callable[..., RedisSaver]
) -> None:
    """A node alone serves nothing."""
    folder = tmp_path_factory.mktemp("alone")
    alone = Server("valkey", folder, ("--cluster-enabled", "yes"), CLUSTER_PORTS).start()
    try:
        with pytest.raises(StoreRefusedError, match="does not serve all slots") as found:
            await put(open_saver(alone.url, retry_for_s=0.1), "t", {"a": 1})
        assert found.value.code == "CLUSTERDOWN"
        by_cluster = open_saver(alone.url.replace("redis://", "redis+cluster://"), retry_for_s=0.1)
        with pytest.raises(SaverError, match=r"Redis at redis\+cluster://"):
            await put(by_cluster, "t", {"a": 1})
    finally:
        alone.stop()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        # Redis 6.2 tells what stopped a script after a dash.
        (
            exceptions.ResponseError(
                "ERR Error running script (call to f_1): @user_script:12: "
                "-OOM command not allowed when used memory > 'maxmemory'."
            ),
            "OOM",
        ),
        (exceptions.ResponseError("MISCONF Redis is configured to save"), "MISCONF"),
        # Redis 7 and Valkey say in their own words what a script may not do.
        (exceptions.ResponseError("The user executing the script can't run this"), "NOPERM"),
        (exceptions.ResponseError("ACL failure in script: User default has no"), "NOPERM"),
        (exceptions.ResponseError("unknown command 'EVAL'"), "ERR"),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), "ERR"),
        (exceptions.AuthenticationError("Authentication required."), "NOAUTH"),
        (exceptions.TryAgainError("Multiple keys request during rehashing"), "TRYAGAIN"),
        (exceptions.ClusterDownError("The cluster is down"), "CLUSTERDOWN"),
        (exceptions.ClusterError("TTL exhausted."), "TRYAGAIN"),
        (exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1 400'"), "ERR"),
        (exceptions.ConnectionError("gone"), None),
        (OSError("gone"), None),
    ],
)
def test_codes_are_read_off_answers(error: Exception, code: str | None) -> None:
    """As the library and each version of the server give them."""
    assert code_of(error) == code
    assert code in {None, "ERR", *REFUSALS}


def test_each_sentence_is_in_the_guide() -> None:
    """Word for word, with whether it is said at once."""
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "operate.md").read_text("utf-8")
    for code, refusal in REFUSALS.items():
        name = "max clients" if code == "MAXCLIENTS" else f"`{code}`"
        when = "" if refusal.passes else ", at once"
        assert f"| {name}{when} | {refusal.reason}: {refusal.remedy} |" in guide


async def test_a_store_that_holds_something_else_is_a_sentence(
    server: Server, open_saver: Callable[..., RedisSaver], prefix: str
) -> None:
    """Any other refusal is a sentence too, not an exception of the library."""
    with admin(server) as client:
        client.set(f"{prefix}:threads", "taken")
    with pytest.raises(StoreRefusedError, match="refuses a command that the saver needs"):
        await put(open_saver(server.url), "t", {"a": 1})


async def test_a_demoted_server_is_looked_up_anew(
    server: Server, open_saver: Callable[..., RedisSaver], prefix: str
) -> None:
    """Its name may lead to another master by now, and an open connection would not notice."""
    saver = open_saver(f"{server.url}?client_name={prefix}", retry_for_s=0)
    await asyncio.gather(*(put(saver, f"t{n}", {"a": n}) for n in range(4)))
    with admin(server) as client:
        cure = read_only(client)
        try:
            with pytest.raises(StoreRefusedError):
                await put(saver, "t", {"a": 1})
            await asyncio.sleep(0.05)
            assert [one for one in client.client_list() if one["name"] == prefix] == []
        finally:
            cure()


@pytest.mark.parametrize("fail", [full, read_only])
async def test_what_is_stored_can_still_be_read_and_listed(
    server: Server, open_saver: Callable[..., RedisSaver], prefix: str, fail: Failing
) -> None:
    """Reading needs no write, not even where the list has entries to sweep."""
    saver = open_saver(server.url, retry_for_s=0.2)
    where = await put(saver, "t", {"a": 1})
    with admin(server) as client:
        keys = registry_keys(prefix)
        client.zadd(keys.threads, {"gone": 1})
        client.zadd(keys.expiries, {"gone": 1, "t": 1})
        cure = fail(client)
        try:
            async with RedisSaver(server.url, options=saver.options) as opened:
                assert [info.thread_id for info in await opened.threads()] == ["t"]
                assert await opened.aget_tuple(where) is not None
                if fail is full:  # to delete makes room
                    await opened.adelete_thread("t")
                    assert await opened.threads() == []
        finally:
            cure()


async def test_a_server_of_another_kind_is_a_sentence(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """A URL that leads to an HTTP server: nothing is tried again."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as http:
        port = http.sockets[0].getsockname()[1]
        with pytest.raises(StoreRefusedError, match=r"Protocol Error.*: it needs Redis 6.2"):
            await put(open_saver(f"redis://127.0.0.1:{port}"), "t", {"a": 1})


# Runs


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        (full, "is full"),
        (read_only, "is a read-only replica"),
        (locked, "wants a password"),
        (forbidden, "does not allow this user"),
    ],
)
async def test_a_run_that_its_store_stopped_resumes(
    server: Server, prefix: str, mock: MockEndpoint, model: Held, fail: Failing, sentence: str
) -> None:
    """It ends by the sentence that the command line shows; no recorded call is made again."""
    options = SaverOptions(prefix=prefix, retry_for_s=0.2, lease_ttl_s=1)
    saver = RedisSaver(server.url, options=options)
    running = await begin(saver, model)
    with admin(server) as client:
        cure = fail(client)
        try:
            model.go.set()
            with pytest.raises(SaverError, match=f"Redis at {server.url} .*{sentence}") as found:
                await running
        finally:
            cure()
    assert explain(found.value).sentence == str(found.value)
    await saver.aclose()
    async with RedisSaver(server.url, options=SaverOptions(prefix=prefix)) as again:
        await finish(again, mock, model, num_repeated=6 - STORED)


async def finish(saver: RedisSaver, mock: MockEndpoint, model: Held, *, num_repeated: int) -> None:
    """Resume, and compare what was asked with a run that nothing stopped."""
    async with saver.lease("t", wait_s=5):
        result = await resume("t", model=model, checkpointer=saver)
    calls = answered(mock)
    assert len(calls) == CALLS
    assert sum(count - 1 for count in calls.values()) <= num_repeated
    assert result.ledger.b_total > 0
    mock.reset()
    whole = await solve(PROBLEM, CONFIG, model=model)
    assert answered(mock).keys() == calls.keys()
    assert result.solution == whole.solution


async def test_a_killed_server_that_is_started_again_does_not_stop_a_run(
    server: Server, open_saver: Callable[..., RedisSaver], mock: MockEndpoint, model: Held
) -> None:
    """SIGKILL in mid-round, restarted from its append-only file: no call is made twice."""
    saver = open_saver(server.url)
    running = await begin(saver, model)
    server.kill()
    model.go.set()
    await asyncio.sleep(0.2)
    assert not running.done()
    await asyncio.to_thread(server.start)
    await running
    assert sorted(answered(mock).values()) == [1] * CALLS


async def test_a_run_whose_server_was_killed_resumes(
    server: Server, prefix: str, mock: MockEndpoint, model: Held
) -> None:
    """SIGKILL, and nobody starts it in time: a sentence, and the run goes on when it is back."""
    saver = RedisSaver(server.url, options=SaverOptions(prefix=prefix, retry_for_s=0.3))
    running = await begin(saver, model)
    server.kill()
    model.go.set()
    sentence = f"Redis at {server.url} did not answer within .*: start the server"
    with pytest.raises(StoreUnreachableError, match=sentence):
        await running
    await saver.aclose()
    await asyncio.to_thread(server.start)
    async with RedisSaver(server.url, options=SaverOptions(prefix=prefix)) as again:
        await finish(again, mock, model, num_repeated=6 - STORED)
