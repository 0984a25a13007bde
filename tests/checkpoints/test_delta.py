"""Delta channels: read in a few round trips, equal to LangGraph's own walk, spared by pruning."""

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, _DeltaSnapshot
from langgraph.graph import END, START, StateGraph
from langgraph.types import Overwrite, Send
from pdr_checkpoints import (
    CorruptCheckpointError,
    FormatVersionError,
    RedisSaver,
    keys,
    open_checkpointer,
)
from pdr_checkpoints.delta import DELTA_COUNTERS, FIRST_PAGE, PAGE, PAGE_BYTES, SEEDS, DeltaReader
from pdr_checkpoints.keys import ThreadKeys
from pdr_checkpoints.records import Place
from pdr_checkpoints.store import Store
from redis_servers import Server
from typing_extensions import TypedDict

CHANNELS = ("items", "notes", "never")
LONG = "long enough to be a part of its own " * 40


def where(thread_id: str, checkpoint_id: str | None = None, ns: str = "") -> dict[str, Any]:
    named = {"thread_id": thread_id, "checkpoint_ns": ns}
    return {"configurable": named | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


@dataclass
class Watched:
    """A store that notes the round trips of a reader."""

    store: Store
    trips: list[str] = field(default_factory=list)
    before_seeds: Callable[[], Awaitable[None]] | None = None
    """What happens between the line of ancestors and its seeds, the first time."""

    def thread(self, thread_id: str) -> ThreadKeys:
        return self.store.thread(thread_id)

    async def call(self, *command: Any) -> Any:
        self.trips.append(command[0])
        return await self.store.call(*command)

    async def pipeline(self, commands: Sequence[Any]) -> Any:
        self.trips.append("pipeline")
        return await self.store.pipeline(commands)

    async def script(self, source: str, *arguments: Any) -> Any:
        self.trips.append("seeds" if source == SEEDS else "line")
        if source == SEEDS and self.before_seeds is not None:
            happens, self.before_seeds = self.before_seeds, None
            await happens()
        return await self.store.script(source, *arguments)


def watched(saver: RedisSaver) -> tuple[Watched, DeltaReader]:
    """Return a reader of the saver's threads, and what notes its round trips."""
    store = Watched(saver._session.store)
    return store, DeltaReader(store, saver._session.envelope, saver.serde)


@dataclass
class Step:
    """One checkpoint of a history that a test makes."""

    parent: int | None
    """Which earlier checkpoint it follows; None is a root."""
    values: dict[str, Any]
    writes: Sequence[tuple[str, str, Sequence[tuple[str, Any]]]]
    """Task id, task path and what it wrote, of each call."""
    written: Sequence[str] = ("items", "notes")
    """Channels that have a version: those ever written to."""
    removed: bool = False
    """Whether it is gone when the history is read, as after a pruning of another kind."""


async def store(
    saver: RedisSaver, thread_id: str, steps: Sequence[Step], ns: str = ""
) -> list[str]:
    """Store a history and return the ids of its checkpoints."""
    ids: list[str] = []
    for step in steps:
        parent = None if step.parent is None else ids[step.parent]
        written = {name: saver.get_next_version(None, None) for name in step.written}
        versions = {name: saver.get_next_version(None, None) for name in step.values} | written
        checkpoint = {
            **empty_checkpoint(),
            "channel_values": step.values,
            "channel_versions": versions,
        }
        # What LangGraph notes of delta channels that it did not store.
        metadata = {"step": 0, DELTA_COUNTERS: dict.fromkeys({*CHANNELS} - {*step.values}, (1, 1))}
        stored = await saver.aput(where(thread_id, parent, ns), checkpoint, metadata, versions)
        ids.append(stored["configurable"]["checkpoint_id"])
        for task_id, path, writes in step.writes:
            await saver.aput_writes(stored, writes, task_id, path)
    thread = saver._session.store.thread(thread_id)
    for step, checkpoint_id in zip(steps, ids, strict=True):
        if step.removed:
            name = Place(thread_id, ns, checkpoint_id).record
            await saver._session.store.call("ZREM", thread.index, name)
            await saver._session.store.call("HDEL", thread.data, name)
    return ids


def a_line(length: int, *, seed: Any = None, write: Any = 1) -> list[Step]:
    """Make a root, with a seed if there is one, and its descendants; all write to `items`."""
    writes = [("task", "~a", [("items", write)])]
    first = {} if seed is None else {"items": _DeltaSnapshot(seed)}
    return [
        Step(number - 1 if number else None, {} if number else first, writes)
        for number in range(length)
    ]


async def both(saver: RedisSaver, config: Any, channels: Sequence[str]) -> tuple[Any, Any]:
    """Return our history and that of LangGraph's own walk."""
    ours = await saver.aget_delta_channel_history(config=config, channels=channels)
    walked = await BaseCheckpointSaver.aget_delta_channel_history(
        saver, config=config, channels=channels
    )
    return ours, walked


VALUES = st.sampled_from(
    [0, None, [], [1, 2], LONG, [LONG, "short", LONG], _DeltaSnapshot([LONG]), _DeltaSnapshot([])]
)
WRITES = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["", "~a", "~b"]),
    st.lists(
        st.tuples(st.sampled_from(["items", "notes", "other", ERROR, INTERRUPT]), VALUES),
        min_size=1,
        max_size=3,
    ),
)
HISTORIES = st.lists(
    st.tuples(
        # Mostly the one before, so that lines grow long; else a fork, or a root.
        st.sampled_from([1, 1, 1, 1, 1, 1, 2, 5, 0]),
        st.dictionaries(st.sampled_from(["items", "notes", "other"]), VALUES, max_size=1)
        | st.just({}),
        st.lists(WRITES, max_size=3),
        st.sampled_from([False] * 15 + [True]),
    ),
    min_size=1,
    max_size=30,
).map(
    lambda rows: [
        Step(at - back if 0 < back <= at else None, values, writes, removed=removed)
        for at, (back, values, writes, removed) in enumerate(rows)
    ]
)


@given(
    steps=HISTORIES,
    target=st.none() | st.integers(0, 29),
    channels=st.lists(st.sampled_from(CHANNELS), max_size=4),
    ns=st.sampled_from(["", "sub|1"]),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(steps=a_line(FIRST_PAGE + 3), target=None, channels=["items", "never"], ns="")
@example(steps=a_line(FIRST_PAGE - 1, seed=[0]), target=None, channels=["items", "items"], ns="")
async def test_any_history_is_that_of_langgraphs_walk(
    saver: RedisSaver, steps: list[Step], target: int | None, channels: list[str], ns: str
) -> None:
    """Forks, several stops, lost parents, special writes: seeds and writes are the same."""
    thread_id = uuid.uuid4().hex
    ids = await store(saver, thread_id, steps, ns)
    # A target of None is the latest.
    chosen = None if target is None else ids[target % len(ids)]
    ours, walked = await both(saver, where(thread_id, chosen, ns), channels)
    assert ours == walked
    assert list(ours) == list(walked)


@given(
    steps=HISTORIES, strategy=st.sampled_from(["keep_latest", "inspection"]), keep=st.integers(1, 3)
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(steps=a_line(FIRST_PAGE + 3), strategy="keep_latest", keep=1)
@example(
    steps=[Step(None, {"items": 0}, []), Step(0, {"notes": 0}, []), Step(1, {"items": 0}, [])],
    strategy="keep_latest",
    keep=1,
)
async def test_any_pruned_history_rebuilds_what_is_kept(
    saver: RedisSaver, steps: list[Step], strategy: str, keep: int
) -> None:
    """Seeds and writes at a kept checkpoint are the same before and after.

    A channel whose value the checkpoint holds is not asked for: nothing rebuilds it.
    """
    thread_id = uuid.uuid4().hex
    ids = await store(saver, thread_id, steps)
    stored = list(zip(ids, steps, strict=True))

    async def histories() -> list[Any]:
        kept = stored[-keep:] if strategy == "keep_latest" else stored
        return [
            await saver.aget_delta_channel_history(
                config=where(thread_id, one), channels=sorted({"items", "notes"} - {*step.values})
            )
            for one, step in kept
        ]

    before = await histories()
    await saver.aprune([thread_id], strategy=strategy, keep=keep)
    assert await histories() == before


@pytest.mark.parametrize(
    ("num_ancestors", "line"), [(1, 1), (10, 1), (15, 1), (16, 2), (100, 2), (143, 2), (300, 4)]
)
async def test_a_line_of_ancestors_takes_few_round_trips(
    saver: RedisSaver, num_ancestors: int, line: int
) -> None:
    """One for 15 ancestors, one more for each 128; then seeds and parts, side by side."""
    steps = a_line(num_ancestors + 1, seed=LONG, write=LONG)
    await store(saver, "t", steps)
    noted, reader = watched(saver)
    found = await reader.history("t", "", None, ["items"])
    assert noted.trips == ["line"] * line + ["seeds", "HMGET"]
    assert found == {
        "items": {"writes": [("task", "items", LONG)] * num_ancestors, "seed": _DeltaSnapshot(LONG)}
    }


async def test_what_is_not_there_takes_no_round_trip(saver: RedisSaver) -> None:
    """No channels, no thread, no seeds, no parts: nothing is asked for them."""
    assert await saver.aget_delta_channel_history(config=where("t"), channels=[]) == {}
    noted, reader = watched(saver)
    assert await reader.history("t", "", None, ["items"]) == {"items": {"writes": []}}
    assert await reader.history("t", "", "1", ["items"]) == {"items": {"writes": []}}
    assert noted.trips == ["line", "line"]
    await store(saver, "t", a_line(2))
    found = await reader.history("t", "", None, ["items"])
    assert found == {"items": {"writes": [("task", "items", 1)]}}
    assert noted.trips == ["line"] * 3


async def test_a_seed_whose_part_is_unseen_takes_one_more_round_trip(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """The server cannot look into an encrypted value, nor into a list."""
    for saver, seed in (
        (open_saver(encryption_keys=[b"k" * 32]), _DeltaSnapshot(LONG)),
        (open_saver(), [LONG, "short"]),
    ):
        thread_id = uuid.uuid4().hex
        steps = a_line(2)
        steps[0].values = {"items": seed}
        await store(saver, thread_id, steps)
        noted, reader = watched(saver)
        found = await reader.history(thread_id, "", None, ["items"])
        assert noted.trips == ["line", "seeds", "HMGET"]
        assert found == {"items": {"writes": [("task", "items", 1)], "seed": seed}}


async def test_a_long_branch_beside_the_line_is_passed_over(saver: RedisSaver) -> None:
    """The line of a fork goes on below the other branch, without reading that."""
    trunk = a_line(3)
    branch = [Step(3 + at - 1 if at else 2, {}, trunk[0].writes) for at in range(3 * PAGE)]
    fork = [Step(0, {}, [("task", "~a", [("items", "fork")])]), Step(3 + 3 * PAGE, {}, [])]
    await store(saver, "t", trunk + branch + fork)
    noted, reader = watched(saver)
    found = await reader.history("t", "", None, ["items"])
    assert found == {"items": {"writes": [("task", "items", 1), ("task", "items", "fork")]}}
    assert noted.trips == ["line", "line"]


async def test_a_page_of_large_writes_ends_early(saver: RedisSaver) -> None:
    """No reply is much larger than a page may be, whatever tasks wrote."""
    # Too short for parts, too random to compress.
    steps = a_line(12)
    for step in steps:
        step.writes = [
            ("task", "~a", [("items", random.randbytes(900)) for _ in range(600)]) for _ in "ab"
        ]
    await store(saver, "t", steps)
    noted, reader = watched(saver)
    ours = await reader.history("t", "", None, ["items"])
    assert ours == (await both(saver, where("t"), ["items"]))[1]
    num_bytes = sum(len(value) for *_, value in ours["items"]["writes"])
    assert num_bytes == 11 * 600 * 900
    assert len(noted.trips) > num_bytes / (2 * PAGE_BYTES)


async def test_every_server_and_the_sync_method_agree(any_server: Server, prefix: str) -> None:
    """Redis and Valkey, async and sync: the same history."""
    steps = a_line(FIRST_PAGE + 4, seed=LONG, write=LONG)
    async with open_checkpointer(any_server.url, prefix=prefix) as saver:
        ids = await store(saver, "t", steps)
        for one in (None, ids[0], ids[1], ids[-2], "never-stored"):
            ours, walked = await both(saver, where("t", one), ["items", "never"])
            assert ours == walked
            sync = await asyncio.to_thread(
                saver.get_delta_channel_history,
                config=where("t", one),
                channels=["items", "never"],
            )
            assert sync == walked


async def each_blob(saver: RedisSaver) -> dict[bytes, bytes]:
    found = await saver._session.store.call("HGETALL", saver._session.store.thread("t").data)
    return {name: blob for name, blob in found.items() if name not in (keys.HEAD, keys.UPDATED)}


@pytest.mark.parametrize("encryption_keys", [(), (b"k" * 32,)], ids=["plain", "encrypted"])
async def test_damage_on_the_line_is_reported(
    open_saver: Callable[..., RedisSaver], encryption_keys: tuple[bytes, ...]
) -> None:
    """A record, pending write, seed or part that is altered, empty or gone is an error."""
    saver = open_saver(encryption_keys=encryption_keys)
    await store(saver, "t", a_line(4, seed=LONG, write=LONG[1:]))
    before = await saver.aget_delta_channel_history(config=where("t"), channels=["items"])
    blobs = await each_blob(saver)
    # The writes of the latest checkpoint are not part of its history.
    latest = max(name for name in blobs if name[:1] == keys.RECORD)
    on_the_line = [name for name in blobs if not name.startswith(b"w" + latest[1:])]
    assert sorted({name[:1] for name in on_the_line}) == [b"c", b"p", b"v", b"w"]
    data = saver._session.store.thread("t").data
    for name in on_the_line:
        for damage in (blobs[name][:-1] + bytes([blobs[name][-1] ^ 1]), b"", None):
            if damage is None:
                await saver._session.store.call("HDEL", data, name)
            else:
                await saver._session.store.call("HSET", data, name, damage)
            with pytest.raises(CorruptCheckpointError):
                await saver.aget_delta_channel_history(config=where("t"), channels=["items"])
        await saver._session.store.call("HSET", data, name, blobs[name])
    after = await saver.aget_delta_channel_history(config=where("t"), channels=["items"])
    assert after == before


async def test_a_later_format_and_a_circle_are_refused(saver: RedisSaver) -> None:
    """A thread of layout 2 is named as such; ancestors in a circle end the walk."""
    (root,) = await store(saver, "t", a_line(1))
    again = {**empty_checkpoint(), "id": root, "channel_versions": {"items": "1"}}
    await saver.aput(where("t", root), again, {DELTA_COUNTERS: {"items": (1, 1)}}, {})
    with pytest.raises(CorruptCheckpointError, match=f"{root}.* is an ancestor of itself"):
        await saver.aget_delta_channel_history(config=where("t"), channels=["items"])
    await saver.aprune(["t"])
    data = saver._session.store.thread("t").data
    await saver._session.store.call("HSET", data, keys.HEAD, b"2 0")
    with pytest.raises(FormatVersionError, match="thread 't'"):
        await saver.aget_delta_channel_history(config=where("t"), channels=["items"])


async def test_a_thread_that_is_pruned_or_deleted_meanwhile_is_read_anew(
    saver: RedisSaver,
) -> None:
    """What went between two reads is no damage."""
    steps = a_line(6, seed=[LONG])
    steps[3].values = {"items": _DeltaSnapshot([LONG, 3])}
    for step in steps:
        step.written = ("items",)
    ids = await store(saver, "t", steps)
    noted, reader = watched(saver)
    noted.before_seeds = lambda: saver.aprune(["t"])
    pruned = await reader.history("t", "", ids[2], ["items"])
    assert pruned == {"items": {"writes": []}}
    kept = await reader.history("t", "", ids[5], ["items"])
    assert kept["items"]["seed"] == _DeltaSnapshot([LONG, 3])
    noted.before_seeds = lambda: saver.adelete_thread("t")
    assert await reader.history("t", "", ids[5], ["items"]) == {"items": {"writes": []}}


async def test_pruning_keeps_nothing_for_a_channel_that_was_never_written(
    saver: RedisSaver,
) -> None:
    """It has no version, so nothing rebuilds it; else a thread would be kept to its root."""
    steps = a_line(8)
    for step in steps:
        step.written = ("notes",)
    steps[5].values = {"notes": _DeltaSnapshot([])}
    ids = await store(saver, "t", steps)
    await saver.aprune(["t"])
    left = [one.config["configurable"]["checkpoint_id"] async for one in saver.alist(where("t"))]
    assert left == ids[:4:-1]


# Whole graphs


def extend(values: list[Any], updates: list[list[Any]]) -> list[Any]:
    return [*values, *(item for update in updates for item in update)]


class Growing(TypedDict, total=False):
    rounds: int
    items: Annotated[list[Any], DeltaChannel(extend, snapshot_frequency=4)]
    notes: Annotated[list[Any], DeltaChannel(extend, snapshot_frequency=3)]


def build(saver: BaseCheckpointSaver[Any]) -> Any:
    """Compile rounds of parallel writers, whose order in `items` is that of their paths."""

    def plan(state: Growing) -> Growing:
        rounds = state.get("rounds", 0) + 1
        return {"rounds": rounds, "notes": [rounds]} if rounds % 2 else {"rounds": rounds}

    def writers(state: Growing) -> list[Send]:
        return [Send("writer", {"at": (state["rounds"], n)}) for n in range(3)]

    def gather(state: Growing) -> Growing:
        return {"items": ["gathered " + str(len(state["items"])) + LONG]}

    builder = StateGraph(Growing)
    builder.add_node("plan", plan)
    builder.add_node("writer", lambda argument: {"items": [list(argument["at"])]})
    builder.add_node("gather", gather)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", writers, ["writer"])
    builder.add_edge("writer", "gather")
    builder.add_conditional_edges(
        "gather", lambda state: "plan" if state.get("rounds", 0) % 3 else END, ["plan", END]
    )
    return builder.compile(checkpointer=saver)


async def states(graph: Any) -> list[Any]:
    """Return values and counters of every checkpoint, newest first."""
    found = [one async for one in graph.aget_state_history(where("t"))]
    return [(one.values, one.next, one.metadata.get(DELTA_COUNTERS)) for one in found]


async def live(graph: Any, durability: str) -> None:
    """Run, fork and replay, update by hand, overwrite, copy, run on."""
    await graph.ainvoke({"items": ["first"]}, where("t"), durability=durability)
    history = [one async for one in graph.aget_state_history(where("t"))]
    middle = history[len(history) // 2]
    # Fork before replay: the old branch's writes are not the new one's.
    forked = await graph.aupdate_state(middle.config, {"items": ["by hand"]}, as_node="gather")
    for config in (forked, history[-1].config):
        goes_on = (await graph.aget_state(config)).next
        start = None if goes_on else {"items": ["begun anew"]}
        await graph.ainvoke(start, config, durability=durability)
    await graph.aupdate_state(where("t"), {"notes": ["noted"]}, as_node="gather")
    await graph.aupdate_state(where("t"), {"items": Overwrite(["anew"])}, as_node="gather")
    await graph.aupdate_state(where("t"), None, as_node="__copy__")
    await graph.ainvoke({"items": ["again"]}, where("t"), durability=durability)
    await graph.aupdate_state(where("t"), {"items": ["last"]}, as_node="gather")


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_runs_forks_and_updates_are_those_in_memory(
    saver: RedisSaver, durability: str
) -> None:
    """Every state of a forked, replayed and updated thread, and its counters, are the same."""
    ours, in_memory = build(saver), build(InMemorySaver())
    await live(ours, durability)
    await live(in_memory, durability)
    expected = await states(in_memory)
    assert await states(ours) == expected
    assert any(counters for _, _, counters in expected)
    assert expected[0][0]["items"][-1] == "last"


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
@pytest.mark.parametrize("keep", [1, 3])
async def test_a_pruned_run_goes_on_as_if_it_were_whole(saver: RedisSaver, keep: int) -> None:
    """After pruning the latest states are the same, and so is what a run adds to them."""
    pruned, whole = build(saver), build(InMemorySaver())
    for graph in (pruned, whole):
        await live(graph, "sync")
    await saver.aprune(["t"], strategy="inspection")
    assert await states(pruned) == await states(whole)
    await saver.aprune(["t"], keep=keep)
    assert (await states(pruned))[:keep] == (await states(whole))[:keep]
    assert len(await states(pruned)) < len(await states(whole))
    for graph in (pruned, whole):
        await graph.ainvoke({"items": ["on"]}, where("t"), durability="sync")
    assert (await states(pruned))[0] == (await states(whole))[0]


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_deleting_a_run_spares_what_later_runs_are_rebuilt_from(saver: RedisSaver) -> None:
    """The later run's states are the same; what nothing needs any more goes."""
    graph = build(saver)
    for number in range(3):
        run = {**where("t"), "metadata": {"run_id": f"run-{number}"}}
        await graph.ainvoke({"items": [f"of run {number}"]}, run, durability="sync")

    async def by_run() -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {f"run-{number}": [] for number in range(3)}
        async for one in graph.aget_state_history(where("t")):
            found[one.metadata["run_id"]].append(one.values)
        return found

    before = await by_run()
    await saver.adelete_for_runs(["run-0", "run-1"])
    after = await by_run()
    assert after["run-2"] == before["run-2"]
    assert after["run-0"] == []
    assert 0 < len(after["run-1"]) < len(before["run-1"])
    await saver.adelete_for_runs(["run-0", "run-1", "run-2"])
    assert await saver.aget_tuple(where("t")) is None
