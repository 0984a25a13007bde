"""Delta channels: rebuilt from ancestors in a few round trips, just as LangGraph's own walk does."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, _DeltaSnapshot
from pdr_checkpoints import CorruptCheckpointError, RedisSaver, keys
from pdr_checkpoints.keys import ThreadKeys
from pdr_checkpoints.reader import LONG_PAGE, PAGE, Reader
from pdr_checkpoints.store import Store
from redis_servers import Server

CHANNELS = ("items", "notes", "never")
LONG = "long enough to be a part of its own " * 40


def where(thread_id: str, checkpoint_id: str | None = None, ns: str = "") -> dict[str, Any]:
    named = {"thread_id": thread_id, "checkpoint_ns": ns}
    return {"configurable": named | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


@dataclass
class Counting:
    """A store that counts the round trips of a reader."""

    store: Store
    calls: list[str] = field(default_factory=list)

    def thread(self, thread_id: str) -> ThreadKeys:
        return self.store.thread(thread_id)

    async def call(self, *command: Any) -> Any:
        self.calls.append(str(command[0]))
        return await self.store.call(*command)

    async def pipeline(self, commands: Sequence[Any]) -> Any:
        self.calls.append("pipeline")
        return await self.store.pipeline(commands)

    async def script(self, *arguments: Any) -> Any:
        self.calls.append("script")
        return await self.store.script(*arguments)


@dataclass
class Step:
    """One checkpoint of a history that a test makes."""

    parent: int | None
    """Which earlier checkpoint it follows; None is a root, and -1 one that was never stored."""
    values: dict[str, Any]
    writes: Sequence[tuple[str, str, Sequence[tuple[str, Any]]]]
    """Task id, task path and what it wrote, of each call."""


async def store(saver: RedisSaver, thread_id: str, steps: Sequence[Step], ns: str = "") -> list[str]:
    """Store a history and return the ids of its checkpoints."""
    ids: list[str] = []
    for step in steps:
        parent = None if step.parent is None else "0" if step.parent < 0 else ids[step.parent]
        versions = {name: saver.get_next_version(None, None) for name in CHANNELS}
        checkpoint = {
            **empty_checkpoint(),
            "channel_values": step.values,
            "channel_versions": versions,
        }
        stored = await saver.aput(where(thread_id, parent, ns), checkpoint, {"step": 0}, versions)
        ids.append(stored["configurable"]["checkpoint_id"])
        for task_id, path, writes in step.writes:
            await saver.aput_writes(stored, writes, task_id, path)
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
        # Mostly the one before, so that lines grow long; else a fork, a root or a lost parent.
        st.sampled_from([1, 1, 1, 1, 1, 1, 2, 5, 0, -1]),
        st.dictionaries(st.sampled_from(["items", "notes", "other"]), VALUES, max_size=1)
        | st.just({}),
        st.lists(WRITES, max_size=3),
    ),
    min_size=1,
    max_size=30,
).map(
    lambda rows: [
        Step(-1 if back < 0 else None if back == 0 or back > at else at - back, values, writes)
        for at, (back, values, writes) in enumerate(rows)
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
@example(steps=a_line(PAGE + 3), target=None, channels=["items", "never"], ns="")
@example(steps=a_line(PAGE - 1, seed=[0]), target=None, channels=["items", "items"], ns="")
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
