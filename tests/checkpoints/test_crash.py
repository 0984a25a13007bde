"""A killed client and a killed server: no finished draft is made again, none is lost."""

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fan_out
import pytest
from pdr_checkpoints import RedisSaver, StoreUnreachableError, ThreadBusyError
from redis_servers import Server


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
