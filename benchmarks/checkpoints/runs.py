"""Whole runs on one saver: bytes, reads, writes during a run, runs per second."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from langgraph.graph.state import CompiledStateGraph

from benchmarks.checkpoints.meter import Meter, Timed, spread
from benchmarks.checkpoints.savers import open_saver
from benchmarks.checkpoints.workload import ROUNDS, Drafter, build, prose

CELL_LIMIT_S = 90.0
"""A saver that takes longer for one concurrency is cut off; its finished runs count."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    latency_runs: int = 20
    bytes_runs: int = 8
    most_runs: int = 32
    """Runs at one concurrency, or as many as run at once if that is more."""


QUICK = Size(latency_runs=2, bytes_runs=2, most_runs=4)


class Bench:
    """Measures one saver."""

    def __init__(
        self, name: str, url: str, folder: str, size: Size, *, seed: int, say: Callable[[str], None]
    ) -> None:
        self.name, self.url, self.folder, self.size, self.say = name, url, folder, size, say
        self.drafter = Drafter(prose())
        self.meter = Meter(name, url, folder)
        self.seeds = itertools.count(1000 * seed)

    async def run(self, graph: CompiledStateGraph) -> dict[str, Any]:
        """Do one run and return the config of its thread."""
        seed = next(self.seeds)
        config = {"configurable": {"thread_id": f"bench-{seed}"}}
        final = await graph.ainvoke({"seed": seed}, config)
        if final["round"] != ROUNDS:
            raise RuntimeError(f"run {seed} ended in round {final['round']}")
        return config

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[CompiledStateGraph]:
        """Yield the graph with its saver, after one run, so that connections and indexes exist."""
        async with open_saver(self.name, self.url, self.folder) as saver:
            graph = build(self.drafter, saver)
            await self.run(graph)
            yield graph

    async def measure(self, levels: Sequence[int]) -> dict[str, Any]:
        """Measure bytes, then reads, then writes, then runs per second at each concurrency."""
        result: dict[str, Any] = {"throughput": {}}
        self.say(f"  {self.name}: bytes and reads")
        async with self.opened() as graph:
            await asyncio.sleep(0.5)
            sent, resident = self.meter.sent(), self.meter.resident()
            for _ in range(self.size.bytes_runs):
                config = await self.run(graph)
            await asyncio.sleep(0.5)  # the server frees its buffers
            result["sent"] = (self.meter.sent() - sent) / self.size.bytes_runs
            result["resident"] = (self.meter.resident() - resident) / self.size.bytes_runs
            result |= await self.reads(graph, config)
        self.say(f"  {self.name}: writes in a run")
        async with self.opened() as graph:
            timed = Timed(graph.checkpointer)
            for _ in range(self.size.latency_runs):
                await self.run(graph)
            result |= {key: spread(ms) for key, ms in timed.ms.items()}
        for level in levels:
            self.say(f"  {self.name}: runs at once: {level}")
            result["throughput"][str(level)] = await self.throughput(level)
        return result

    async def reads(self, graph: CompiledStateGraph, config: dict[str, Any]) -> dict[str, Any]:
        """Time the latest state and the whole history of a run, in ms."""
        ms: dict[str, list[float]] = {"get_state": [], "history": []}
        for _ in range(40):
            start = time.perf_counter()
            await graph.aget_state(config)
            ms["get_state"].append((time.perf_counter() - start) * 1000)
        for _ in range(10):
            start = time.perf_counter()
            states = [state async for state in graph.aget_state_history(config)]
            ms["history"].append((time.perf_counter() - start) * 1000)
        if sum(bool(state.values.get("drafts")) for state in states) != ROUNDS:
            raise RuntimeError(f"{self.name} lost drafts from its history")
        return {key: spread(values) for key, values in ms.items()}

    async def throughput(self, level: int) -> dict[str, Any]:
        """Do `level` runs at once, and up to eight times as many in all."""
        gate = asyncio.Semaphore(level)
        async with self.opened() as graph:

            async def one() -> None:
                async with gate:
                    await self.run(graph)

            total = max(level, min(self.size.most_runs, 8 * level))
            start, cpu = time.perf_counter(), time.process_time()
            tasks = [asyncio.create_task(one()) for _ in range(total)]
            finished, late = await asyncio.wait(tasks, timeout=CELL_LIMIT_S)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        errors = [error for task in finished if (error := task.exception()) is not None]
        return {
            "runs_per_s": (len(finished) - len(errors)) / seconds,
            "cpu_ms": cpu * 1000 / max(1, len(finished)),
            "failed": len(errors),
            "late": len(late),
            "error": repr(errors[0])[:200] if errors else None,
        }
