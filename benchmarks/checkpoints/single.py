"""Single calls of every saver in turn: 16 pending writes, then their checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint

from benchmarks.checkpoints.meter import spread
from benchmarks.checkpoints.savers import open_saver
from benchmarks.checkpoints.workload import ROUNDS, WIDTH, Drafter, prose

STEPS = 40


class Caller:
    """One thread of one saver, and how long its calls took, in ms."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver = saver
        self.where: dict[str, Any] = {"thread_id": "calls", "checkpoint_ns": ""}
        self.version: Any = None
        self.ms: dict[str, list[float]] = {"put": [], "put_writes": []}

    async def step(self, number: int, drafts: list[dict[str, Any]]) -> None:
        """Write drafts one after the other, then the checkpoint that holds them.

        The first step, which opens connections, is not timed.
        """
        saver, begun = self.saver, "checkpoint_id" in self.where
        if begun:
            for index, draft in enumerate(drafts):
                start = time.perf_counter()
                await saver.aput_writes(
                    {"configurable": self.where}, [("drafts", draft)], f"task-{index}", f"~{index}"
                )
                self.ms["put_writes"].append((time.perf_counter() - start) * 1000)
        self.version = saver.get_next_version(self.version, None)
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"drafts": drafts}
        checkpoint["channel_versions"] = {"drafts": self.version}
        start = time.perf_counter()
        stored = await saver.aput(
            {"configurable": self.where}, checkpoint, {"step": number}, {"drafts": self.version}
        )
        if begun:
            self.ms["put"].append((time.perf_counter() - start) * 1000)
        self.where = stored["configurable"]


async def measure(urls: Mapping[str, str], folder: str, *, seed: int) -> dict[str, dict[str, Any]]:
    """Time the calls of all savers, a step of each in turn; p50 and p99 in ms by saver and call."""
    drafter = Drafter(prose())
    async with AsyncExitStack() as stack:
        callers = {
            name: Caller(await stack.enter_async_context(open_saver(name, url, folder)))
            for name, url in urls.items()
        }
        for number in range(STEPS):
            drafts = []
            for index in range(WIDTH):
                asked = {"seed": seed + number, "round": number % ROUNDS + 1, "index": index}
                drafts += (await drafter(asked))["drafts"]
            for caller in callers.values():
                await caller.step(number, drafts)
    return {
        name: {call: spread(ms) for call, ms in caller.ms.items()}
        for name, caller in callers.items()
    }
