"""The sync API: every method, in plain code, in threads, and inside a running loop."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fan_out
import pytest
from langgraph.graph import END, START, StateGraph
from pdr_checkpoints import LeaseLostError, RedisSaver, SaverOptions, StoreUnreachableError
from pdr_checkpoints.session import LoopThread
from test_saver import checkpoint

FORKS = """
import asyncio, os, sys
from pdr_checkpoints import SaverOptions, RedisSaver
from test_sync import put

async def write(saver):
    await saver.aput_writes(where, [("a", 2)], "task")

with RedisSaver(sys.argv[1], options=SaverOptions(prefix=sys.argv[2])) as saver:
    where = put(saver, "t", a=1)
    asyncio.run(write(saver))
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(list(saver.list({"configurable": {"thread_id": "t"}}))) == 2
    else:
        assert saver.get_tuple(where).pending_writes == [("task", "a", 2)]
        put(saver, "t", a=3)
        asyncio.run(write(saver))
        saver.close()
        os._exit(0)
"""
"""A process that uses a saver, forks, and uses it on both sides."""


@pytest.fixture
def sync_saver(redis_url: str, prefix: str) -> Iterator[RedisSaver]:
    with RedisSaver(redis_url, options=SaverOptions(prefix=prefix)) as saver:
        yield saver


def put(saver: RedisSaver, thread_id: str, **values: Any) -> Any:
    versions = {name: saver.get_next_version(None, None) for name in values}
    where = {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", "run_id": thread_id}}
    return saver.put(where, checkpoint(values, versions), {"step": 0}, versions)


def test_every_sync_method(sync_saver: RedisSaver) -> None:
    """Put, read, list, write, copy, prune and delete without an event loop."""
    first = put(sync_saver, "t", a=1)
    put(sync_saver, "t", a=2)
    sync_saver.put_writes(first, [("a", 3)], "task", "path")
    listed = list(sync_saver.list({"configurable": {"thread_id": "t"}}))
    assert [found.checkpoint["channel_values"]["a"] for found in listed] == [2, 1]
    found = sync_saver.get_tuple(first)
    assert found is not None
    assert found.pending_writes == [("task", "a", 3)]
    sync_saver.copy_thread("t", "u")
    sync_saver.prune(["t"])
    assert len(list(sync_saver.list({"configurable": {"thread_id": "t"}}))) == 1
    assert len(list(sync_saver.list({"configurable": {"thread_id": "u"}}, limit=1))) == 1
    sync_saver.delete_for_runs(["t"])
    sync_saver.delete_thread("u")
    assert sync_saver.get_tuple(first) is None


def test_sync_graph_runs_and_resumes(sync_saver: RedisSaver) -> None:
    """`invoke`, `get_state` and `stream` of a graph, in several threads at once."""
    builder = StateGraph(dict)
    builder.add_node("one", lambda state: {"n": state["n"] + 1})
    builder.add_edge(START, "one")
    builder.add_edge("one", END)
    graph = builder.compile(checkpointer=sync_saver)

    def run(number: int) -> Any:
        graph.invoke({"n": number}, fan_out.config(f"t{number}"))
        return graph.get_state(fan_out.config(f"t{number}")).values

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(24))) == [{"n": number + 1} for number in range(24)]


async def test_sync_calls_inside_a_loop_see_async_writes(saver: RedisSaver, tmp_path: Path) -> None:
    """Both APIs show the same threads, and a sync call does not deadlock."""
    graph = fan_out.build(fan_out.Drafter(tmp_path), checkpointer=saver)
    await graph.ainvoke(fan_out.start(width=2), fan_out.config("t"))
    assert graph.get_state(fan_out.config("t")).values["workspace"] == "0,1"


async def test_sync_writes_are_fenced(saver: RedisSaver) -> None:
    """A sync method writes under the lease that the async one holds."""
    async with saver.lease("t"):
        put(saver, "t", a=1)
        await saver._session.store.call(
            "SET", saver._session.store.thread("t").lease, "9 another holder"
        )
        with pytest.raises(LeaseLostError):
            put(saver, "t", a=2)


def test_closing_ends_the_thread(redis_url: str, prefix: str) -> None:
    """Nothing is left running, and a saver that was never used has nothing to end."""
    before = threading.active_count()
    with RedisSaver(redis_url, options=SaverOptions(prefix=prefix)) as saver:
        assert threading.active_count() == before + 1
        clone = saver.with_allowlist([("module", "Name")])
        put(clone, "t", a=1)
    assert threading.active_count() == before
    RedisSaver(redis_url).close()


def test_a_process_ends_with_a_saver_that_was_not_closed(redis_url: str, prefix: str) -> None:
    """The thread of the loop does not keep the process alive."""
    code = (
        "import sys; from pdr_checkpoints import *; from test_sync import put\n"
        "saver = RedisSaver(sys.argv[1], options=SaverOptions(prefix=sys.argv[2]))\n"
        "put(saver, 't', a=1)"
    )
    command = [sys.executable, "-c", code, redis_url, prefix]
    subprocess.run(command, cwd=Path(__file__).parent, timeout=120, check=True)


def test_unreachable_server_is_reported() -> None:
    """Opening in sync code fails with the same sentence, and leaves no thread."""
    before = threading.active_count()
    saver = RedisSaver("redis://127.0.0.1:1", options=SaverOptions(open_for_s=0.1))
    with pytest.raises(StoreUnreachableError), saver:
        pass
    assert threading.active_count() == before


def test_a_call_that_is_under_way_ends_with_the_loop() -> None:
    """A caller that waits in another thread gets an error and does not wait for ever."""
    loop = LoopThread()
    with ThreadPoolExecutor() as pool:
        began = threading.Event()

        async def wait() -> None:
            began.set()
            await asyncio.Event().wait()

        waiting = pool.submit(loop.run, wait())
        assert began.wait(60)
        loop.stop()
        with pytest.raises(CancelledError):
            waiting.result(60)


def test_a_forked_process_has_connections_of_its_own(redis_url: str, prefix: str) -> None:
    """Its calls work, sync and async ones; the parent's go on."""
    command = [sys.executable, "-c", FORKS, redis_url, prefix]
    done = subprocess.run(command, cwd=Path(__file__).parent, timeout=120, check=False)
    assert done.returncode == 0


def test_one_saver_serves_every_event_loop(redis_url: str, prefix: str, tmp_path: Path) -> None:
    """`asyncio.run` twice, several loops in threads at once, and the sync methods beside them."""
    saver = RedisSaver(redis_url, options=SaverOptions(prefix=prefix))
    config = {"configurable": {"thread_id": "t"}}

    async def run(number: int) -> int:
        graph = fan_out.build(fan_out.Drafter(tmp_path), checkpointer=saver)
        where = fan_out.config(f"t{number}")
        await graph.ainvoke(fan_out.start(width=2), where)
        return len([each async for each in saver.alist(where)])

    try:
        alone = [asyncio.run(run(number)) for number in range(2)]
        with ThreadPoolExecutor(4) as threads:
            beside = list(threads.map(lambda number: asyncio.run(run(number)), range(2, 6)))
        gc.collect()  # a connection that was left open would warn
        assert len({*alone, *beside}) == 1
        assert saver.get_tuple(config) is None
    finally:
        saver.close()


def test_a_session_goes_with_its_loop(redis_url: str, prefix: str) -> None:
    """A program that calls `asyncio.run` again and again does not grow."""
    saver = RedisSaver(redis_url, options=SaverOptions(prefix=prefix, max_connections=2))

    async def read() -> None:
        configs = [{"configurable": {"thread_id": f"t{number}"}} for number in range(8)]
        await asyncio.gather(*map(saver.aget_tuple, configs))

    for _ in range(4):
        asyncio.run(read())
    saver.get_tuple({"configurable": {"thread_id": "t"}})
    assert len(saver._sessions._by_loop) == 1
    saver.close()


async def test_closing_closes_the_sessions_of_other_loops(redis_url: str, prefix: str) -> None:
    """A loop in another thread loses its connections with the saver."""
    saver = RedisSaver(redis_url, options=SaverOptions(prefix=prefix))
    other = LoopThread()
    try:
        await asyncio.to_thread(other.run, saver.aget_tuple({"configurable": {"thread_id": "t"}}))
        assert await saver.aget_tuple({"configurable": {"thread_id": "t"}}) is None
        await saver.aclose()
        assert len(saver._sessions._by_loop) == 0
    finally:
        await asyncio.to_thread(other.stop)
