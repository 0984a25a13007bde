"""The load and the figures of `make bench-priority`."""

import asyncio
import json
from collections import Counter
from itertools import pairwise
from statistics import fmean

import pytest

from benchmarks.figures import Figures, tell
from benchmarks.priority import (
    ARMS,
    KINDS,
    Passage,
    Served,
    WorkClock,
    arrivals,
    compared,
    table,
)
from pdr_graph.errors import LocalError

RUNS = 16


def passage(*seconds: float) -> Passage:
    served = [Served(kind, each, 10, 100) for kind in KINDS for each in seconds]
    return Passage(tuple(served), seconds=10.0)


def test_both_ways_serve_the_same_runs():
    """Arrivals, problems, strategies and seeds are those of the repeat's seed."""
    assert arrivals(RUNS, 7) == arrivals(RUNS, 7) != arrivals(RUNS, 8)


def test_every_repeat_has_the_same_mix():
    """Strategies are dealt in their shares, and in an order of the seed's own."""
    mixes = [[each.kind for each in arrivals(RUNS, seed)] for seed in range(5)]
    assert all(Counter(mix) == {"pdr": 8, "sr": 4, "long_cot": 4} for mix in mixes)
    assert len(set(map(tuple, mixes))) == 5


def test_arrivals_load_the_server_as_they_should():
    """By the clock of finished calls: a run makes 5.5, and 1.5 of them come meanwhile."""
    found = arrivals(2000, 1)
    gaps = [late.at - early.at for early, late in pairwise(found)]
    assert fmean(gaps) == pytest.approx(5.5 / 1.5, rel=0.1)
    assert min(gaps) > 0.0


async def test_the_clock_of_arrivals_is_the_work_that_is_done():
    """It waits for calls while a run can make them, and skips the time in which none does."""
    clock = WorkClock()

    async def three_calls() -> Served:
        for turn in range(1, 61):  # a call takes twenty turns of the loop
            await asyncio.sleep(0)
            if turn % 20 == 0:
                await clock.record({})
        return Served("pdr", 1.0, 3, 3)

    running = [asyncio.create_task(three_calls())]
    await clock.until(2, running)
    assert clock.calls == 2
    await clock.until(7.5, running)
    assert running[0].done()
    await clock.until(7.5, running)
    running.append(asyncio.create_task(three_calls()))
    await clock.until(9.5, running)
    assert clock.calls == 5


def test_a_ratio_is_that_of_the_repeats():
    """Each repeat counts the same, however slow the machine was in it."""
    both = [
        {"without": passage(2.0, 4.0), "with": passage(1.0, 2.0)},
        {"without": passage(20.0, 40.0), "with": passage(20.0, 40.0)},
    ]
    figures = compared(both)
    rows = {row["measure"]: row for row in figures["rows"]}
    mean = rows["mean of a run, s"]
    assert (mean["without"], mean["with"]) == (16.5, 15.75)
    assert mean["ratio"] == pytest.approx(0.5**0.5)
    assert mean["low"] < mean["ratio"] < 1.0 < mean["high"]
    assert mean["repeats_below_one"] == 1
    assert rows["completion tokens per s"]["ratio"] == pytest.approx(1.0)
    machine = {"machine": {"cores": "2"}, "vllm": "vllm"}
    assert "| p95 of a run, s |" in table(figures | machine)


def test_one_repeat_has_no_interval():
    """It does not show how much repeats differ."""
    figures = compared([dict.fromkeys(ARMS, passage(1.0))])
    assert {row["low"] for row in figures["rows"]} == {None}
    assert "| – |" in table(figures | {"machine": {}, "vllm": "vllm"})


def test_figures_are_printed_and_written(tmp_path, capsys):
    """The table for the reader, all figures as JSON."""
    file = tmp_path / "figures.json"
    assert tell(lambda: {"calls": 3}, lambda found: f"calls: {found['calls']}", file) == 0
    assert capsys.readouterr().out == "calls: 3\n"
    assert json.loads(file.read_text()) == {"calls": 3}


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (LocalError("no vLLM"), 1, "error: no vLLM"),
        (ValueError("no number: 'x'"), 1, "error: no number: 'x'"),
        (KeyboardInterrupt(), 130, "called off; vLLM is stopped"),
    ],
)
def test_a_benchmark_that_fails_says_why(tmp_path, capsys, error, status, line):
    """In one line, and nothing is written."""

    def measure() -> Figures:
        raise error

    assert tell(measure, str, tmp_path / "figures.json") == status
    assert capsys.readouterr() == ("", line + "\n")
    assert not any(tmp_path.iterdir())
