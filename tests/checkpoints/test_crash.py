"""A killed client and a killed server: no finished draft is made again, none is lost."""

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import fan_out
import pytest
from pdr_checkpoints import RedisSaver, StoreUnreachableError, ThreadBusyError
from redis_servers import Server
from test_saver import put


@pytest.fixture
def spawn(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Return a function that runs the graph in another process."""
    children: list[subprocess.Popen] = []

    def run(thread_id: str, kind: str = "root") -> subprocess.Popen:
        arguments = [redis_url, prefix, thread_id, str(tmp_path), kind]
        child = subprocess.Popen([sys.executable, fan_out.__file__, *arguments])
        children.append(child)
        return child

    yield run
    for child in children:
        child.kill()
        child.wait()


async def wait_for_drafts(saver: RedisSaver, thread_id: str, count: int) -> None:
    deadline = time.monotonic() + 90  # the child's imports, on a machine that does much else
    while await fan_out.num_finished(saver, thread_id) < count:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", ["root", "nested"])
async def test_killed_client_repeats_no_finished_draft(
    saver: RedisSaver, spawn: Callable[..., subprocess.Popen], tmp_path: Path, kind: str
) -> None:
    """SIGKILL with 5 of 8 drafts done: the resumed run makes the other 3 only."""
    child = spawn("t", kind)
    await wait_for_drafts(saver, "t", 5)
    child.kill()
    child.wait()
    (tmp_path / "go").touch()
    graph = fan_out.build(fan_out.Drafter(tmp_path), nested=kind == "nested", checkpointer=saver)
    final = await graph.ainvoke(None, fan_out.config("t"))
    lines = (tmp_path / "finished").read_text().split()
    assert sorted(lines) == [f"0.{index}" for index in range(8)]
    assert final["workspace"] == "0,1,2,3,4,5,6,7"
    assert [draft["text"][:10] for draft in final["drafts"]] == [f"draft 0.{i} " for i in range(8)]


async def test_second_process_is_refused_until_the_first_is_dead(
    saver: RedisSaver, spawn: Callable[..., subprocess.Popen]
) -> None:
    """A live thread is refused, naming thread and holder; a dead one's lease runs out."""
    child = spawn("t")
    await wait_for_drafts(saver, "t", 5)
    with pytest.raises(ThreadBusyError, match=f"thread 't' is being run by .*:{child.pid}"):
        async with saver.lease("t"):
            pass
    child.kill()
    child.wait()
    async with saver.lease("t", wait_s=10) as lease:
        assert lease.token == 2


async def test_killed_server_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    open_saver: Callable[..., RedisSaver],
    tmp_path: Path,
) -> None:
    """SIGKILL of a server with an append-only file: the client reconnects and goes on."""
    folder = tmp_path_factory.mktemp("killed")
    server = Server("valkey", folder, ("--appendonly", "yes")).start()
    saver = open_saver(server.url)
    try:
        drafter = fan_out.Drafter(tmp_path, held=frozenset({5, 6, 7}))
        graph = fan_out.build(drafter, checkpointer=saver)
        async with saver.lease("t"):
            run = asyncio.create_task(graph.ainvoke(fan_out.start(rounds=2), fan_out.config("t")))
            await wait_for_drafts(saver, "t", 5)
            server.kill()
            (tmp_path / "go").touch()
            await asyncio.sleep(0.5)
            assert not run.done()
            await asyncio.to_thread(server.start)
            final = await run
        lines = (tmp_path / "finished").read_text().split()
        assert len(lines) == len(set(lines)) == 16
        stored = await graph.aget_state(fan_out.config("t"))
        assert stored.values == final
        assert len(final["drafts"]) == 16
    finally:
        await saver.aclose()
        server.stop()


async def test_server_that_stays_away_ends_a_run_in_the_time_of_one_operation(
    tmp_path_factory: pytest.TempPathFactory,
    open_saver: Callable[..., RedisSaver],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SIGKILL for good: one warning at once, and writes, lease and closing share one time limit."""
    server = Server("valkey", tmp_path_factory.mktemp("gone")).start()
    saver = open_saver(server.url, retry_for_s=2.0)

    async def run() -> None:
        drafter = fan_out.Drafter(tmp_path, held=frozenset({5, 6, 7}))
        graph = fan_out.build(drafter, checkpointer=saver)
        async with saver.lease("t"):
            await graph.ainvoke(fan_out.start(), fan_out.config("t"))

    try:
        with caplog.at_level(logging.WARNING, logger="pdr_checkpoints"):
            running = asyncio.create_task(run())
            await wait_for_drafts(saver, "t", 5)
            server.kill()
            (tmp_path / "go").touch()
            killed = time.monotonic()
            with pytest.raises(StoreUnreachableError, match=server.url):
                await running
        # Two operations in turn, a write and the release of the lease, took 4 s before.
        assert time.monotonic() - killed < 3.5
        assert caplog.text.count("store.retry") == 1
    finally:
        await saver.aclose()
        server.stop()


IMPORTING = """
import asyncio, sys
from pathlib import Path
from pdr_checkpoints import open_checkpointer

async def go(url, prefix, file, thread):
    async def slowly():
        whole = Path(file).read_bytes()
        for at in range(0, len(whole), 100_000):
            yield whole[at : at + 100_000]
            await asyncio.sleep(0.02)
    async with open_checkpointer(url, prefix=prefix) as saver:
        if file == "copy":
            await saver.acopy_thread("t", thread)
        else:
            await saver.import_thread(slowly(), thread_id=thread)

asyncio.run(go(*sys.argv[1:]))
"""


def start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", IMPORTING, *words])


@pytest.mark.security
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("how", ["import", "copy"])
async def test_a_killed_import_or_copy_leaves_nothing(
    saver: RedisSaver, redis_url: str, prefix: str, tmp_path: Path, how: str, part: float
) -> None:
    """SIGKILL while it is stored: no list shows it, what is left expires, a repetition works."""
    for number in range(60):
        await put(saver, "t", {"a": f"{number} " + os.urandom(40_000).hex()})
    exported = b"".join([chunk async for chunk in saver.export_thread("t")])
    file = tmp_path / "file"
    file.write_bytes(exported)
    store = saver._session.store
    whole = await store.call("HLEN", store.thread("t").data)
    words = [redis_url, prefix, "copy" if how == "copy" else str(file), "u"]
    child = start(words)
    data = store.thread("u").data
    try:
        deadline = time.monotonic() + 60
        while True:
            aside = await store.call("KEYS", f"{data}:*".replace("{", "\\{"))
            held = [await store.call("HLEN", key) for key in aside if b":data:" in key]
            shown = await store.call("EXISTS", data)
            if shown or sum(held) >= max(1, int(part * whole)) or child.poll() is not None:
                break
            assert time.monotonic() < deadline
    finally:
        child.kill()
        child.wait()
    listed = {info.thread_id for info in await saver.threads()}
    found = await saver.aget_tuple({"configurable": {"thread_id": "u"}})
    if "u" not in listed:
        assert found is None
        assert not await store.call("EXISTS", data)
        for key in await store.call("KEYS", f"{prefix}:*u*:*:*"):
            assert 0 < await store.call("PTTL", key) <= 3_600_000
    again = f"again-{how}" if "u" in listed else "u"

    async def chunks() -> AsyncIterator[bytes]:
        yield exported

    assert await saver.import_thread(chunks(), thread_id=again) == again
    for thread in {again, *listed}:
        assert (
            len([one async for one in saver.alist({"configurable": {"thread_id": thread}})]) == 60
        )


@pytest.mark.security
async def test_what_a_killed_import_of_version_0_1_left_is_replaced(saver: RedisSaver) -> None:
    """It wrote fields in their place before there was an index: the name was taken for ever."""
    await put(saver, "t", {"a": "b"})
    exported = b"".join([chunk async for chunk in saver.export_thread("t")])
    store = saver._session.store
    await store.call("HSET", store.thread("u").data, "m", "1 0", "v\0\0old\x001", "left")

    async def chunks() -> AsyncIterator[bytes]:
        yield exported

    assert await saver.import_thread(chunks(), thread_id="u") == "u"
    assert not await store.call("HEXISTS", store.thread("u").data, "v\0\0old\x001")
    assert {info.thread_id for info in await saver.threads()} == {"t", "u"}
