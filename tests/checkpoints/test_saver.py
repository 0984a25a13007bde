"""LangGraph's conformance suite, and what it does not look at: forks, subgraphs, order, expiry."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fan_out
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT
from pdr_checkpoints import RedisSaver, StoreUnreachableError, open_checkpointer
from redis_servers import Server

ROOT = Path(__file__).parents[2]


def checkpoint(values: dict[str, Any], versions: dict[str, str]) -> dict[str, Any]:
    return {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}


async def put(
    saver: RedisSaver, thread_id: str, values: dict[str, Any], **configurable: Any
) -> dict[str, Any]:
    versions = {name: saver.get_next_version(None, None) for name in values}
    where = {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", **configurable}}
    return await saver.aput(where, checkpoint(values, versions), {"step": 0}, versions)


async def test_every_capability_conforms(any_server: Server, prefix: str) -> None:
    """All base and extended capabilities are there, and all their tests pass."""

    @checkpointer_test(name=prefix)
    async def factory():
        async with open_checkpointer(any_server.url, prefix=prefix) as saver:
            yield saver

    report = await validate(factory)
    assert {name: result.failures for name, result in report.results.items()} == {
        capability.value: [] for capability in Capability
    }
    assert sum(result.tests_passed for result in report.results.values()) >= 81


async def test_encrypted_saver_conforms(redis_url: str, prefix: str) -> None:
    """Encryption changes nothing that the suite can see."""

    @checkpointer_test(name=prefix)
    async def factory():
        async with open_checkpointer(
            redis_url, prefix=prefix, encryption_keys=[b"k" * 32]
        ) as saver:
            yield saver

    report = await validate(factory)
    assert [f for result in report.results.values() for f in result.failures] == []


@pytest.mark.parametrize(
    "thread_id",
    [
        "",
        " ",
        "}{",
        "{a}",
        "a:b",
        "é→漢字",
        "\0",
        "\1\0\2",
        "%7B",
        "a/b?c",
        "\ud800",
        "x" * 3000,
        "*",
    ],
)
async def test_thread_ids_may_hold_any_character(saver: RedisSaver, thread_id: str) -> None:
    """A thread of any id is apart from others, is listed, and can be deleted."""
    await put(saver, thread_id, {"a": thread_id or "empty"})
    await put(saver, "other", {"a": "other"})
    found = await saver.aget_tuple({"configurable": {"thread_id": thread_id}})
    assert found is not None
    assert found.config["configurable"]["thread_id"] == thread_id
    assert {info.thread_id for info in await saver.threads()} == {thread_id, "other"}
    await saver.adelete_thread(thread_id)
    assert [info.thread_id for info in await saver.threads()] == ["other"]


async def test_namespaces_with_odd_names_do_not_mix(saver: RedisSaver) -> None:
    """A namespace is matched as a whole, never as a prefix."""
    names = ["", "a", "a\0", "a\0b", "a\1", "ab", "a|b:1", "é"]
    for name in names:
        await put(saver, "t", {"ns": name or "root"}, checkpoint_ns=name)
    for name in names:
        config = {"configurable": {"thread_id": "t", "checkpoint_ns": name}}
        listed = [found async for found in saver.alist(config)]
        assert [one.checkpoint["channel_values"]["ns"] for one in listed] == [name or "root"]


async def test_fork_leaves_the_old_branch_intact(saver: RedisSaver, tmp_path: Path) -> None:
    """Replaying from an old checkpoint changes no value that an earlier one shows."""
    graph = fan_out.build(fan_out.Drafter(tmp_path), checkpointer=saver)
    await graph.ainvoke(fan_out.start(width=3, rounds=2), fan_out.config("t"))
    before = [state async for state in graph.aget_state_history(fan_out.config("t"))]
    middle = before[len(before) // 2]
    fork = await graph.aupdate_state(middle.config, {"problem": "another"})
    await graph.ainvoke(None, fork)
    for state in before:
        again = await graph.aget_state(state.config)
        assert again.values == state.values
        assert again.next == state.next
    assert (await graph.aget_state(fan_out.config("t"))).values["problem"] == "another"


async def test_versions_differ_under_one_random_seed(saver: RedisSaver) -> None:
    """Two forks with one random seed have different versions."""
    import random

    versions = set()
    for _ in range(2):
        random.seed(0)
        versions.add(saver.get_next_version("00000004.abc", None))
    assert len(versions) == 2
    assert all(version > "00000004.ffffffffffff" for version in versions)


async def test_history_of_a_parent_excludes_its_subgraph(saver: RedisSaver, tmp_path: Path) -> None:
    """`""` is the root only, and `before` and `limit` hold within it."""
    graph = fan_out.build(fan_out.Drafter(tmp_path), nested=True, checkpointer=saver)
    await graph.ainvoke(fan_out.start(width=2, rounds=2), fan_out.config("t"))
    root = [state async for state in graph.aget_state_history(fan_out.config("t"))]
    assert all(state.config["configurable"]["checkpoint_ns"] == "" for state in root)
    assert [state.metadata["step"] for state in root] == [1, 0, -1]
    earlier = graph.aget_state_history(fan_out.config("t"), before=root[0].config, limit=1)
    assert [state.config async for state in earlier] == [root[1].config]
    everything = [found async for found in saver.alist({"configurable": {"thread_id": "t"}})]
    assert len(everything) > len(root)
    ids = [found.checkpoint["id"] for found in everything]
    assert ids == sorted(ids, reverse=True)


async def test_history_pages_are_complete(saver: RedisSaver) -> None:
    """More checkpoints than a page holds come back once each, filtered or not."""
    parent: dict[str, Any] = {}
    for step in range(40):
        where = {"configurable": {"thread_id": "t", "checkpoint_ns": "", **parent}}
        stored = await saver.aput(where, checkpoint({}, {}), {"step": step, "odd": step % 2}, {})
        parent = {"checkpoint_id": stored["configurable"]["checkpoint_id"]}
    config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    steps = [found.metadata["step"] async for found in saver.alist(config)]
    assert steps == list(range(39, -1, -1))
    odd = saver.alist(config, filter={"odd": 1}, limit=18)
    assert [found.metadata["step"] async for found in odd] == list(range(39, 3, -2))


async def test_pending_writes_come_in_task_path_order(saver: RedisSaver) -> None:
    """Task ids are hashes: the path decides, then the id, then the position."""
    config = await put(saver, "t", {})
    await saver.aput_writes(config, [("x", 3), ("y", 4)], "a", "~__pregel_push, 2")
    await saver.aput_writes(config, [("x", 2)], "b", "~__pregel_push, 1")
    await saver.aput_writes(config, [("x", 1)], "z", "")
    found = await saver.aget_tuple(config)
    assert found is not None
    assert [write[2] for write in found.pending_writes or ()] == [1, 2, 3, 4]


async def test_results_stand_and_errors_are_replaced(saver: RedisSaver) -> None:
    """The first result of a task is kept; its error or interrupt is the last one."""
    config = await put(saver, "t", {})
    for attempt in ("first", "second"):
        await saver.aput_writes(config, [("x", attempt)], "task")
        await saver.aput_writes(config, [(ERROR, attempt)], "task")
        await saver.aput_writes(config, [(INTERRUPT, attempt)], "task")
    found = await saver.aget_tuple(config)
    assert found is not None
    assert {channel: value for _, channel, value in found.pending_writes or ()} == {
        "x": "first",
        ERROR: "second",
        INTERRUPT: "second",
    }


async def test_each_index_keeps_its_first_result(saver: RedisSaver) -> None:
    """Calls of different length, as the engine makes them for its null task, add up."""
    config = await put(saver, "t", {})
    for writes in (["a"], ["b", "c"], ["d", "e", "f"], ["g"]):
        await saver.aput_writes(config, [("x", value) for value in writes], "task")
    found = await saver.aget_tuple(config)
    assert found is not None
    assert [value for _, _, value in found.pending_writes or ()] == ["a", "c", "f"]


async def test_time_to_live_covers_the_whole_thread(
    open_saver: Callable[..., RedisSaver], tmp_path: Path
) -> None:
    """A run longer than the time to live keeps values that did not change; idle, it expires."""

    class Slow(fan_out.Drafter):
        async def __call__(self, argument: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(0.35)
            return await super().__call__(argument)

    saver = open_saver(ttl_s=0.8)
    graph = fan_out.build(Slow(tmp_path), checkpointer=saver)
    await graph.ainvoke(fan_out.start(width=2, rounds=4), fan_out.config("t"))
    state = await graph.aget_state(fan_out.config("t"))
    assert state.values["problem"] == "1 + 1"
    assert len(state.values["drafts"]) == 8
    (info,) = await saver.threads()
    assert info.expires_in_s is not None
    assert 0 < info.expires_in_s <= 0.8
    await asyncio.sleep(0.9)
    assert await saver.aget_tuple(fan_out.config("t")) is None
    assert await saver.threads() == []


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text()
    | st.binary()
    | st.text(min_size=1, max_size=5).map(lambda text: text * 700),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(value=VALUES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_every_value_comes_back(saver: RedisSaver, value: Any) -> None:
    """A channel's value and a pending write survive the round trip, whatever their size."""
    config = await put(saver, uuid.uuid4().hex, {"a": value})
    await saver.aput_writes(config, [("b", value)], "task")
    found = await saver.aget_tuple(config)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": value}
    assert found.pending_writes == [("task", "b", value)]


async def test_32_runs_of_16_drafts_share_the_default_pool(
    saver: RedisSaver, tmp_path: Path
) -> None:
    """More operations at once than connections wait; none fails."""

    async def drafter(argument: dict[str, Any]) -> dict[str, Any]:
        return {"drafts": [{"index": argument["index"], "text": os.urandom(500).hex()}]}

    graph = fan_out.build(drafter, checkpointer=saver)
    finals = await asyncio.gather(
        *(
            graph.ainvoke(fan_out.start(width=16), fan_out.config(f"t{number}"))
            for number in range(32)
        )
    )
    assert {len(final["drafts"]) for final in finals} == {16}
    assert len(await saver.threads()) == 32


async def test_strict_msgpack_mode_reads_plain_state(
    redis_url: str, prefix: str, tmp_path: Path
) -> None:
    """With LANGGRAPH_STRICT_MSGPACK a run of plain data is stored, resumed and read."""
    script = (
        "import asyncio, sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "import fan_out\n"
        "from pdr_checkpoints import open_checkpointer\n"
        "async def main():\n"
        "    async with open_checkpointer(sys.argv[2], prefix=sys.argv[3]) as saver:\n"
        "        drafter = fan_out.Drafter(pathlib.Path(sys.argv[4]))\n"
        "        graph = fan_out.build(drafter, checkpointer=saver)\n"
        "        first = await graph.ainvoke(\n"
        "            fan_out.start(), fan_out.config('t'), interrupt_before=['collect'])\n"
        "        final = await graph.ainvoke(None, fan_out.config('t'))\n"
        "        assert len(final['drafts']) == 8, final\n"
        "        assert saver.with_allowlist([('x', 'Y')]) is not saver\n"
        "asyncio.run(main())\n"
    )
    child = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(Path(__file__).parent), redis_url, prefix, tmp_path],
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert "not in the deserialization allowlist" not in child.stderr
    assert "Blocked" not in child.stderr


async def test_unreachable_server_is_one_clear_sentence() -> None:
    """Opening fails soon, and says where, how long, why and what to do."""
    message = r"Redis at redis://127\.0\.0\.1:1/0 did not answer within .*start the server"
    with pytest.raises(StoreUnreachableError, match=message):
        async with open_checkpointer("redis://user:secret@127.0.0.1:1/0", open_for_s=0.2):
            pass


def test_a_server_finds_what_langgraph_json_names() -> None:
    """LangGraph's server looks in the module's `__dict__`, before any name was asked for."""
    named = json.loads((ROOT / "langgraph.json").read_text())
    module, _, name = named["checkpointer"]["path"].rpartition(".")
    program = f"import sys, {module}; assert callable(vars({module})[{name!r}])"
    light = "assert not {'redis', 'langgraph'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", f"{program}; {light}"], check=True)


async def test_url_comes_from_the_environment(
    redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without arguments, as langgraph.json opens it, the URL is REDIS_URL."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    async with open_checkpointer() as saver:
        assert saver.url == redis_url
