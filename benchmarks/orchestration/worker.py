"""Carries out loads in a process of its own: reads a job, prints the figures.

Before each load one run is made that does not count: it imports, connects and fills caches. What
it leaves is put out of the garbage collector's sight, for every subject alike, as a server does
that means to stay: otherwise each full collection looks through all imported modules, 100 ms.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from benchmarks.orchestration.endpoint import ask
from benchmarks.orchestration.files import allow_many_files
from benchmarks.orchestration.lag import lag_of_loop, summary_ms
from benchmarks.orchestration.load import Figures, Job, Load
from benchmarks.orchestration.subjects import open_subject


class Tally:
    """Collects what came of the runs of one load."""

    def __init__(self, load: Load, job: Job) -> None:
        self.load, self.port = load, job.port
        self.latencies_s: list[float] = []
        self.ledger: list[dict[str, Any]] = []
        self.errors: list[BaseException] = []

    def start(self) -> None:
        """Begin to count; the endpoint forgets the run that warmed up."""
        ask(self.port, "/bench/settings", self.load.settings)
        self.memory = _peak_memory()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def done(self, began: float, account: dict[str, Any] | None) -> None:
        """Count a run that ended well."""
        self.latencies_s.append(time.perf_counter() - began)
        if account is not None:
            self.ledger.append({name: account[name] for name in account if name != "rows"})

    def figures(self, late: int, lag: list[float]) -> Figures:
        """Stop counting."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return Figures(
            load=asdict(self.load),
            done=len(self.latencies_s),
            failed=len(self.errors),
            late=late,
            error=repr(self.errors[0])[:300] if self.errors else None,
            wall_s=wall,
            cpu_s=cpu,
            latencies_s=self.latencies_s,
            ledger=self.ledger,
            served=ask(self.port, "/bench/stats"),
            lag_ms=summary_ms(lag) if lag else {},
            memory_bytes=_peak_memory() - self.memory,
        )


async def carry_out(load: Load, job: Job) -> Figures:
    """Do the runs of a load on this process's event loop, or in threads."""
    ask(job.port, "/bench/settings", {})
    subject = open_subject(load, job)
    if isinstance(subject, AbstractContextManager):
        with subject as run:
            run(0)
            gc.freeze()
            return await asyncio.to_thread(_in_threads, run, Tally(load, job))
    async with subject as run:
        await run(0)
        gc.freeze()
        return await _in_loop(run, Tally(load, job))


async def _in_loop(run: Callable[[int], Any], tally: Tally) -> Figures:
    load = tally.load
    gate = asyncio.Semaphore(load.at_once)

    async def one(number: int) -> None:
        async with gate:
            began = time.perf_counter()
            tally.done(began, await run(number))

    tally.start()
    async with lag_of_loop() as lag:
        tasks = [asyncio.create_task(one(n)) for n in range(1, load.runs + 1)]
        ended, late = await asyncio.wait(tasks, timeout=load.limit_s)
    tally.errors += [error for task in ended if (error := task.exception()) is not None]
    figures = tally.figures(len(late), lag)
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=5)
    return figures


def _in_threads(run: Callable[[int], Any], tally: Tally) -> Figures:
    load = tally.load

    def one(number: int) -> None:
        began = time.perf_counter()
        tally.done(began, run(number))

    pool = ThreadPoolExecutor(load.at_once)
    tally.start()
    ended, late = wait([pool.submit(one, n) for n in range(1, load.runs + 1)], timeout=load.limit_s)
    tally.errors += [error for task in ended if (error := task.exception()) is not None]
    figures = tally.figures(len(late), [])
    pool.shutdown(wait=False, cancel_futures=True)
    return figures


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


async def _all(job: Job) -> None:
    for load in job.loads:
        figures = await carry_out(load, job)
        sys.stdout.write(json.dumps(asdict(figures)) + "\n")
        sys.stdout.flush()
    # A subject that hangs may have threads that never end, for which the loop would wait.
    os._exit(0)


def main() -> None:
    """Read a job from standard input and print a line of figures for each of its loads."""
    allow_many_files()
    asyncio.run(_all(Job.of_json(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
