"""Measures what scheduling priorities do to the latency of runs, on real vLLM under mixed load.

    python -m benchmarks.priority [--repeats 6] [--runs 16] [--seed 1] [--json FILE]

Runs of several strategies arrive by a Poisson process, faster than the server can finish them. Each
repeat draws its arrivals, problems and strategies from its seed and serves them twice: once without
priorities (vLLM then serves requests in the order of their arrival) and once with them. Both use
the same server and begin with an empty prefix cache; which comes first alternates. What is compared
is the time from the arrival of a run to its end.

The clock of the arrivals is the number of calls that the server has finished. So the load is the
same on any machine, and stays so when other work slows it. The time of a run is told by this clock
as well as in seconds.
"""

import argparse
import asyncio
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.figures import Figures, tell
from benchmarks.gpu.arms import make_problems
from engine.cache import say
from engine.machine import describe_machine, vllm_version
from engine.server import VLLMServer, smollm2_on_cpu
from pdr_graph import ModelClient, Parts, PDRConfig, preset, solve
from pdr_graph.connect import open_client
from pdr_graph.eval.stats import mean_by_problem
from pdr_graph.settings import load_settings
from pdr_graph.trace import TraceRecord

AT_ONCE = 4
"""Requests that the server works on at the same time: the widest round, as `pdr-graph up` sizes a
server for one run of a wide strategy."""
LOAD = 1.5
"""Runs that arrive in the time in which the server does the work of one."""
TOKENS = 16
"""Most completion tokens of a call."""
KINDS = {"pdr": 0.5, "sr": 0.25, "long_cot": 0.25}
"""Share of each strategy among the runs."""
WIDTHS: dict[str, tuple[int, ...]] = {"pdr": (4, 2), "sr": (1, 1), "long_cot": ()}
CALLS = {"pdr": 4 + 1 + 2 + 1 + 1, "sr": 3, "long_cot": 1}
"""Calls of a run."""
ARMS = ("without", "with")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A run that is asked for."""

    at: float
    """When, in finished calls."""
    kind: str
    problem: str
    config: PDRConfig


@dataclass(frozen=True, slots=True)
class Served:
    """A run that has ended."""

    kind: str
    seconds: float
    """From its arrival."""
    calls: int
    """Calls of all runs that the server finished in this time."""
    tokens: int
    """Completion tokens of all its calls."""


class WorkClock:
    """Counts the calls that have been finished: the trace of all runs of a passage."""

    def __init__(self) -> None:
        self.calls = 0
        self._skipped = 0.0
        self._ticked = asyncio.Event()

    async def record(self, call: TraceRecord) -> None:
        """Count one call."""
        self.calls += 1
        self._ticked.set()

    async def until(self, at: float, running: Sequence[asyncio.Task[Served]]) -> None:
        """Wait for a time; it is skipped to if no run is left that could bring it."""
        while self.calls + self._skipped < at:
            left = [each for each in running if not each.done()]
            if not left:
                self._skipped = at - self.calls
                return
            self._ticked.clear()
            ticked = asyncio.ensure_future(self._ticked.wait())
            await asyncio.wait({ticked, *left}, return_when=asyncio.FIRST_COMPLETED)
            ticked.cancel()


@dataclass(frozen=True, slots=True)
class Passage:
    """All runs of a repeat, served in one of the two ways."""

    served: tuple[Served, ...]
    seconds: float
    """From the first arrival to the last end."""

    def percentile(self, percent: float, unit: str = "seconds") -> float:
        """Return a percentile of the latency of all runs, in seconds or calls."""
        return float(np.percentile([getattr(each, unit) for each in self.served], percent))

    def mean(self, kind: str | None = None) -> float:
        """Return the mean latency of the runs of a strategy, or of all, in seconds."""
        return fmean(each.seconds for each in self.served if kind in {None, each.kind})

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens per second, over all runs."""
        return sum(each.tokens for each in self.served) / self.seconds


def arrivals(count: int, seed: int) -> list[Arrival]:
    """Draw the runs of a repeat; the same seed draws the same runs."""
    rng = random.Random(seed)
    problems = make_problems(count, terms=2, seed=rng.randrange(2**31))
    # Dealt, not drawn one by one: every repeat has the same number of each.
    kinds = [kind for kind, share in KINDS.items() for _ in range(round(share * count))]
    kinds = (kinds + ["pdr"] * count)[:count]
    rng.shuffle(kinds)
    between = fmean(CALLS[kind] for kind in kinds) / LOAD
    at, found = 0.0, []
    for kind, problem in zip(kinds, problems, strict=True):
        config = preset(
            kind, widths=WIDTHS[kind], kappa=48, max_tokens=TOKENS, solution_tokens=TOKENS,
            min_success=0.1, seed=rng.randrange(2**31),
        )  # fmt: skip
        found.append(Arrival(at, kind, problem.text, config))
        at += rng.expovariate(1.0 / between)
    return found


async def serve(server: VLLMServer, asked: Sequence[Arrival], *, priority: bool) -> Passage:
    """Let the runs arrive, and return how long each of them took."""
    server.forget_prefixes()
    settings = load_settings(base_url=server.base_url, priority=priority)
    async with open_client(settings) as client:
        clock, began = WorkClock(), time.perf_counter()
        running: list[asyncio.Task[Served]] = []
        for each in asked:
            await clock.until(each.at, running)
            running.append(asyncio.create_task(_served(each, client, clock)))
        served = await asyncio.gather(*running)
        return Passage(tuple(served), time.perf_counter() - began)


async def _served(asked: Arrival, client: ModelClient, clock: WorkClock) -> Served:
    start, calls = time.perf_counter(), clock.calls
    result = await solve(asked.problem, asked.config, model=client, parts=Parts(trace=clock))
    tokens = sum(row["completion_tokens"] for row in result.ledger.rows)
    return Served(asked.kind, time.perf_counter() - start, clock.calls - calls, tokens)


def measure(repeats: int, runs: int, seed: int) -> Figures:
    """Serve every repeat both ways, on a server of its own making."""
    options = ("--max-model-len", "1024", "--max-num-seqs", str(AT_ONCE), "--block-size", "32")
    with smollm2_on_cpu(*options) as server:
        say(f"vLLM is up after {server.started_in_s:.0f} s")
        passages: list[dict[str, Passage]] = []
        for repeat in range(repeats):
            asked = arrivals(runs, seed * 1000 + repeat)
            order = ARMS if repeat % 2 == 0 else ARMS[::-1]
            found = {}
            for arm in order:
                found[arm] = asyncio.run(serve(server, asked, priority=arm == "with"))
            passages.append(found)
            say(
                f"repeat {repeat + 1} of {repeats}: "
                + ", ".join(
                    f"{arm} {found[arm].percentile(50):.1f} and {found[arm].percentile(95):.1f} s"
                    for arm in ARMS
                )
            )
    return {
        "command": f"make bench-priority ARGS='--repeats {repeats} --runs {runs} --seed {seed}'",
        "vllm": vllm_version(server.python),
        "machine": describe_machine(),
        "model": "SmolLM2-135M-Instruct, float32",
        "requests_at_once": AT_ONCE,
        **compared(passages),
        "passages": [
            {
                arm: {"seconds": found.seconds, "served": [asdict(each) for each in found.served]}
                for arm, found in both.items()
            }
            for both in passages
        ],
    }


MEASURES: dict[str, Callable[[Passage], float]] = {
    "p50 of a run, s": lambda each: each.percentile(50),
    "p95 of a run, s": lambda each: each.percentile(95),
    "p50 of a run, calls": lambda each: each.percentile(50, "calls"),
    "p95 of a run, calls": lambda each: each.percentile(95, "calls"),
    "mean of a run, s": lambda each: each.mean(),
    "mean of pdr, s": lambda each: each.mean("pdr"),
    "mean of sr, s": lambda each: each.mean("sr"),
    "mean of long_cot, s": lambda each: each.mean("long_cot"),
    "completion tokens per s": lambda each: each.tokens_per_s,
}


def compared(passages: Sequence[dict[str, Passage]]) -> Figures:
    """Return each measure without and with priorities, and the ratio over repeats.

    The ratio is the geometric mean of those of the repeats, with the t interval of their logarithms
    at 95 %; its ends are None for a single repeat.
    """
    rows = []
    for name, of in MEASURES.items():
        values = {arm: [of(each[arm]) for each in passages] for arm in ARMS}
        logs = [math.log(of(each["with"]) / of(each["without"])) for each in passages]
        ratio = mean_by_problem(logs)
        rows.append(
            {
                "measure": name,
                **{arm: fmean(values[arm]) for arm in ARMS},
                "ratio": math.exp(ratio.value),
                "low": None if ratio.low is None else math.exp(ratio.low),
                "high": None if ratio.high is None else math.exp(ratio.high),
                "repeats_below_one": sum(each < 0 for each in logs),
            }
        )
    return {"repeats": len(passages), "rows": rows}


def table(figures: Figures) -> str:
    """Lay the rows out for a terminal or a page."""
    rows = figures["rows"]
    assert isinstance(rows, list)
    lines = ["| mean over repeats | without | with | ratio | 95 % |", "|---|---|---|---|---|"]
    for row in rows:
        ends = "–" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
        lines.append(
            f"| {row['measure']} | {row['without']:.1f} | {row['with']:.1f} "
            f"| {row['ratio']:.2f} | {ends} |"
        )
    machine = figures["machine"]
    assert isinstance(machine, dict)
    where = ", ".join(f"{name}: {value}" for name, value in machine.items())
    return "\n".join([*lines, "", f"{figures['repeats']} repeats; {figures['vllm']}; {where}"])


def main() -> int:
    """Print the table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--runs", type=int, default=16, help="runs of a repeat")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    return tell(lambda: measure(asked.repeats, asked.runs, asked.seed), table, asked.json)


if __name__ == "__main__":
    sys.exit(main())
