"""(e) How the cost of a run grows with its width and its rounds: both must be lines."""

from __future__ import annotations

from typing import Any

from benchmarks.orchestration.bench import Bench, medians
from benchmarks.orchestration.fit import fit
from benchmarks.orchestration.load import Load

TITLE = "(e) Client CPU of one run, stored in Valkey, calls without delay"
WIDTH = 4
"""Drafts in each round where rounds grow."""


def measure(bench: Bench) -> dict[str, Any]:
    """Measure each size several times, and fit the medians."""
    repeats = bench.choose(5, 1)
    widths = (1, 2, 4) if bench.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    rounds = (1, 2, 4) if bench.quick else (1, 2, 4, 8, 16, 32)
    shapes: dict[str, dict[int, tuple[int, ...]]] = {
        "drafts in one round": {width: (width,) for width in widths},
        f"rounds of {WIDTH} drafts": {count: (WIDTH,) * count for count in rounds},
    }
    results: dict[str, Any] = {}
    for name, sizes in shapes.items():
        loads = [
            Load("pdr-graph", widths=shape) for shape in sizes.values() for _ in range(repeats)
        ]
        cpu = [1000 * figures.cpu_s for figures in bench.measure(*loads)]
        middle = [medians(cpu[first : first + repeats])[1] for first in range(0, len(cpu), repeats)]
        line = fit(list(sizes), middle)
        results[name] = {
            "sizes": list(sizes),
            "cpu_ms": middle,
            "ms_each": line.slope,
            "ms_fixed": line.intercept,
            "r_squared": line.r_squared,
        }
    return results


def table(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Show the line of each kind of growth."""
    rows = [
        [
            name,
            f"{each['sizes'][0]} to {each['sizes'][-1]}",
            f"{each['ms_each']:.2f}",
            f"{each['ms_fixed']:.1f}",
            f"{each['r_squared']:.4f}",
        ]
        for name, each in data.items()
    ]
    return ["growing", "from", "ms each", "ms fixed", "R²"], rows
