"""What every case measures with: the endpoint, the store, and workers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.orchestration.endpoint import BenchEndpoint
from benchmarks.orchestration.load import Figures, Job, Load
from benchmarks.orchestration.subjects import PEERS
from pdr_graph.servers import embedded_valkey

GRACE_S = 60.0
"""For importing, warming up and opening, beyond the limits of the loads."""


class WorkerError(RuntimeError):
    """A worker ended without its figures."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark run."""

    endpoint: BenchEndpoint
    store: str
    quick: bool
    """Whether to measure little, to see that everything works."""
    peers_python: Path | None
    """Interpreter of the peers' environment; None leaves the peers out."""
    say: Callable[[str], None]

    def measure(self, *loads: Load) -> list[Figures]:
        """Carry out loads of one subject, one after another, in a process of their own.

        Raises:
            WorkerError: it ended early; its last words are in the message.
        """
        figures: list[Figures] = []
        python = sys.executable
        if loads[0].subject in PEERS:
            assert self.peers_python is not None
            python = str(self.peers_python)
        job = Job(list(loads), self.endpoint.port, self.store)
        try:
            done = subprocess.run(
                [python, "-m", "benchmarks.orchestration.worker"],
                input=json.dumps(job.to_json()),
                capture_output=True,
                text=True,
                timeout=sum(load.limit_s for load in loads) + GRACE_S,
            )
        except subprocess.TimeoutExpired as error:
            raise WorkerError(f"no figures within {error.timeout:.0f} s") from None
        figures += [Figures(**json.loads(line)) for line in done.stdout.splitlines()]
        if len(figures) < len(loads):
            last = " | ".join(done.stderr.strip().splitlines()[-2:])
            raise WorkerError(f"ended with {done.returncode}: {last[-400:]}")
        for each in figures:
            self._tell(each)
        return figures

    def choose(self, full: int, quick: int) -> int:
        """Return a number for this run."""
        return quick if self.quick else full

    def _tell(self, figures: Figures) -> None:
        load = figures.load
        text = (
            f"{load['subject']}, {load['at_once']} at once: {figures.done} runs in "
            f"{figures.wall_s:.1f} s, {figures.cpu_ms_per_call:.2f} ms CPU a call"
        )
        if figures.failed or figures.late:
            text += f"; {figures.failed} failed, {figures.late} cut off"
        self.say(text)


@asynccontextmanager
async def opened(
    *, quick: bool, peers_python: Path | None, say: Callable[[str], None]
) -> AsyncIterator[Bench]:
    """Start the endpoint and a store of its own, and end both."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, BenchEndpoint() as endpoint:
        async with embedded_valkey(Path(folder)) as store:
            yield Bench(endpoint, store, quick, peers_python, say)


def medians(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the least, the middle and the greatest."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    even = (ordered[middle] + ordered[~middle]) / 2
    return ordered[0], even, ordered[-1]
