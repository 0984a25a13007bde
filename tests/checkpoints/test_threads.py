"""Pruning, deleting, copying, exporting and listing whole threads."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

import fan_out
import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.graph import END, START, StateGraph
from pdr_checkpoints import (
    CorruptCheckpointError,
    RedisSaver,
    StoreConfigError,
    ThreadContendedError,
    ThreadNotFoundError,
    ThreadTakenError,
)
from pdr_checkpoints.connect import Argument
from pdr_checkpoints.session import LoopSessions
from pdr_checkpoints.store import SWAP_TRIES, Command, Store
from test_saver import put
from typing_extensions import TypedDict


def extend(values: list[int], updates: list[list[int]]) -> list[int]:
    return [*values, *(item for update in updates for item in update)]


class Growing(TypedDict):
    items: Annotated[list[int], DeltaChannel(extend)]


async def history(saver: RedisSaver, thread_id: str) -> list[CheckpointTuple]:
    return [found async for found in saver.alist({"configurable": {"thread_id": thread_id}})]


def contents(found: list[CheckpointTuple]) -> list[tuple[Any, ...]]:
    return [(one.checkpoint, one.metadata, one.pending_writes) for one in found]


async def run(saver: RedisSaver, folder: Path, thread_id: str = "t", **how: Any) -> Any:
    graph = fan_out.build(fan_out.Drafter(folder), nested=True, checkpointer=saver)
    await graph.ainvoke(fan_out.start(width=4, rounds=3), fan_out.config(thread_id), **how)
    return graph


async def num_bytes(saver: RedisSaver, thread_id: str) -> int:
    info = await saver.thread(thread_id)
    assert info is not None
    assert info.num_bytes is not None
    return info.num_bytes


async def each(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_keep_latest_keeps_n_per_namespace(saver: RedisSaver, tmp_path: Path) -> None:
    """The last 2 of each namespace stay whole; the rest goes, with its values and writes."""
    await run(saver, tmp_path)
    before = await history(saver, "t")
    size = await num_bytes(saver, "t")
    await saver.aprune(["t"], keep=2)
    after = await history(saver, "t")
    namespaces = {one.config["configurable"]["checkpoint_ns"] for one in before}
    expected = [
        one
        for ns in sorted(namespaces)
        for one in [b for b in before if b.config["configurable"]["checkpoint_ns"] == ns][:2]
    ]
    assert len(namespaces) == 2
    assert sorted(contents(after), key=str) == sorted(contents(expected), key=str)
    assert await num_bytes(saver, "t") < size
    data = saver._session.store.thread("t").data
    for name in await saver._session.store.call("HKEYS", data):
        assert name[:1] in b"mucvwp"


async def test_inspection_keeps_every_state(saver: RedisSaver, tmp_path: Path) -> None:
    """A finished run looks the same, but superseded pending writes are gone."""
    await run(saver, tmp_path)
    before = await history(saver, "t")
    await saver.aprune(["t"], strategy="inspection")
    after = await history(saver, "t")
    assert [(one.checkpoint, one.metadata) for one in after] == [
        (one.checkpoint, one.metadata) for one in before
    ]
    assert sum(len(one.pending_writes or ()) for one in after) < sum(
        len(one.pending_writes or ()) for one in before
    )


async def test_pruned_run_can_be_resumed(saver: RedisSaver, tmp_path: Path) -> None:
    """An interrupted run goes on after pruning, and repeats nothing."""
    graph = fan_out.build(fan_out.Drafter(tmp_path), checkpointer=saver)
    config = fan_out.config("t")
    await graph.ainvoke(fan_out.start(rounds=2), config, interrupt_before=["collect"])
    await saver.aprune(["t"])
    await graph.ainvoke(None, config)
    lines = (tmp_path / "finished").read_text().split()
    assert len(lines) == len(set(lines)) == 16


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_pruning_spares_what_delta_channels_need(saver: RedisSaver) -> None:
    """A delta channel is rebuilt from its ancestors' writes: these stay."""
    builder = StateGraph(Growing)
    builder.add_node("step", lambda state: {"items": [len(state["items"])]})
    builder.add_edge(START, "step")
    builder.add_conditional_edges(
        "step", lambda state: END if len(state["items"]) > 5 else "step", ["step", END]
    )
    graph = builder.compile(checkpointer=saver)
    await graph.ainvoke({"items": []}, fan_out.config("t"))
    values = (await graph.aget_state(fan_out.config("t"))).values
    for strategy in ("inspection", "keep_latest"):
        await saver.aprune(["t"], strategy=strategy)
        assert (await graph.aget_state(fan_out.config("t"))).values == values
    assert values == {"items": [0, 1, 2, 3, 4, 5]}


async def test_a_rewrite_gives_up_on_a_thread_that_is_written_to(saver: RedisSaver) -> None:
    """A removal is not applied to a thread that changed since it was read."""
    await put(saver, "t", {"a": 0})
    session = saver._session
    keys = session.store.thread("t")

    async def plan_too_slowly() -> list[Command]:
        await put(saver, "t", {"a": 1})
        return [("UNLINK", keys.data, keys.index)]

    with pytest.raises(ThreadContendedError, match="thread 't' was written to"):
        await session.store.swap("t", plan_too_slowly, None)
    assert len(await history(saver, "t")) == 1 + SWAP_TRIES


async def test_a_rewrite_tries_again_when_a_write_came_between(saver: RedisSaver) -> None:
    """It then plans again and sees that write."""
    await put(saver, "t", {"a": 0})
    session = saver._session
    keys = session.store.thread("t")
    seen: list[int] = []

    async def plan() -> list[Command]:
        seen.append(len(await history(saver, "t")))
        if len(seen) == 1:
            await put(saver, "t", {"a": 1})
        return [("UNLINK", keys.data, keys.index)]

    await session.store.swap("t", plan, None)
    assert seen == [1, 2]
    assert await history(saver, "t") == []


@dataclass
class Interrupted(Store):
    """Runs something else after the first command of a name."""

    after: str = ""
    then: list[Callable[[], Awaitable[Any]]] = field(default_factory=list)

    async def call(self, *command: Argument) -> Any:
        reply = await super().call(*command)
        if command[0] == self.after and self.then:
            await self.then.pop()()
        return reply


@pytest.mark.parametrize("after", ["EXISTS", "UNLINK"])
async def test_a_thread_that_begins_while_it_is_removed_is_kept(
    open_saver: Callable[..., RedisSaver], after: str
) -> None:
    """A write that comes in the middle of pruning or deletion is kept and listed."""
    saver, other = open_saver(), open_saver()
    store = saver._session.store
    same = {one.name: getattr(store, one.name) for one in fields(store)}
    interrupted = Interrupted(**same, after=after, then=[lambda: put(other, "t", {"a": 1})])
    session = replace(saver._session, store=interrupted)
    saver._sessions = LoopSessions(lambda: session)
    await (saver.aprune(["t"]) if after == "EXISTS" else saver.adelete_thread("t"))
    assert interrupted.then == []
    assert len(await history(other, "t")) == 1
    assert [info.thread_id for info in await other.threads()] == ["t"]


async def test_what_is_under_way_is_deleted_too(saver: RedisSaver) -> None:
    """A write that began before its thread was deleted does not bring the thread back."""
    await put(saver, "t", {"a": 0})
    texts = [os.urandom(1_000_000).hex() for _ in range(8)]
    writing = asyncio.create_task(put(saver, "t", {"a": texts}))
    await asyncio.sleep(0)
    await saver.adelete_thread("t")
    await writing
    assert await history(saver, "t") == []
    assert await saver.threads() == []


async def test_strategies_are_checked(saver: RedisSaver) -> None:
    """A strategy or number that means nothing is refused by name."""
    with pytest.raises(StoreConfigError, match="strategy is 'some'"):
        await saver.aprune(["t"], strategy="some")
    with pytest.raises(StoreConfigError, match="keeps 0"):
        await saver.aprune(["t"], keep=0)


async def test_deleting_a_run_spares_shared_values(saver: RedisSaver) -> None:
    """A part that another run's checkpoint refers to stays."""
    text = "shared " * 500
    await put(saver, "t", {"a": text}, run_id="one")
    await put(saver, "t", {"a": text, "b": text + "two"}, run_id="two")
    await saver.adelete_for_runs(["one"])
    (left,) = await history(saver, "t")
    assert left.checkpoint["channel_values"] == {"a": text, "b": text + "two"}
    await saver.adelete_for_runs(["two"])
    assert await saver.threads() == []


async def test_copy_is_independent(saver: RedisSaver, tmp_path: Path) -> None:
    """A copy shows the same history, and outlives its source."""
    await run(saver, tmp_path)
    before = contents(await history(saver, "t"))
    await saver.acopy_thread("t", "u")
    await saver.adelete_thread("t")
    assert contents(await history(saver, "u")) == before
    with pytest.raises(ThreadNotFoundError, match="thread 't' has no checkpoints"):
        await saver.acopy_thread("t", "v")


@pytest.mark.parametrize("size", [1, 7, 1000, 10**7])
async def test_export_and_import_are_exact(
    open_saver: Callable[..., RedisSaver], tmp_path: Path, size: int
) -> None:
    """A thread carried to another place is byte for byte the same, however the file is cut."""
    saver = open_saver()
    other = open_saver(prefix=saver.options.prefix + "-other")
    rounds = {1: 0}.get(size, 1)
    if rounds:
        await run(saver, tmp_path)
    else:
        await put(saver, "t", {"a": "b"})
    exported = b"".join([chunk async for chunk in saver.export_thread("t")])
    cut = [exported[start : start + size] for start in range(0, len(exported), size)]
    assert await other.import_thread(each(cut)) == "t"
    for name in ("HGETALL", "ZRANGE"):
        stored = []
        for one in (saver, other):
            thread = one._session.store.thread("t")
            command = [thread.data] if name == "HGETALL" else [thread.index, 0, -1]
            stored.append(await one._session.store.call(name, *command))
        assert stored[0] == stored[1]
    assert [info.thread_id for info in await other.threads()] == ["t"]
    with pytest.raises(ThreadTakenError, match="thread 't' already has checkpoints"):
        await other.import_thread(each(cut))
    assert await other.import_thread(each(cut), thread_id="renamed") == "renamed"
    assert contents(await history(other, "renamed")) == contents(await history(saver, "t"))


async def test_damaged_export_is_refused(open_saver: Callable[..., RedisSaver]) -> None:
    """A cut, altered or foreign file stores nothing."""
    saver = open_saver()
    other = open_saver(prefix=saver.options.prefix + "-other")
    await put(saver, "t", {"a": "text " * 1000})
    good = b"".join([chunk async for chunk in saver.export_thread("t")])
    middle = len(good) // 2
    for bad in (
        good[:-1],
        good[:middle],
        good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        b"PK" + good,
        b"",
    ):
        with pytest.raises(CorruptCheckpointError, match="the exported thread"):
            await other.import_thread(each([bad]))
        assert await other.aget_tuple({"configurable": {"thread_id": "t"}}) is None
        store = other._session.store
        assert not await store.call("EXISTS", store.thread("t").data)
    with pytest.raises(ThreadNotFoundError):
        await anext(saver.export_thread("absent"))


async def test_threads_are_listed_newest_first(saver: RedisSaver) -> None:
    """Size, age and number of checkpoints, without a scan."""
    start = time.time()
    for name in ("a", "b", "c", "a"):
        await put(saver, name, {"x": name})
        await asyncio.sleep(0.01)
    infos = await saver.threads()
    assert [(info.thread_id, info.num_checkpoints) for info in infos] == [
        ("a", 2),
        ("c", 1),
        ("b", 1),
    ]
    first = infos[0]
    assert start - 1 < first.created.timestamp() < first.updated.timestamp() < time.time() + 1
    assert (first.holder, first.expires_in_s) == (None, None)
    assert first.num_bytes is not None
    assert first.num_bytes > 100
    assert [info.thread_id for info in await saver.threads(limit=2)] == ["a", "c"]
    assert await saver.thread("absent") is None


async def test_list_without_config_reads_every_thread(saver: RedisSaver) -> None:
    """Checkpoints of all threads, filtered by metadata and bounded."""
    for name in ("a", "b", "c"):
        await put(saver, name, {"x": name}, user=name)
    found = [one async for one in saver.alist(None, filter={"user": "b"})]
    assert [one.checkpoint["channel_values"] for one in found] == [{"x": "b"}]
    assert len([one async for one in saver.alist(None, limit=2)]) == 2
