"""(a) One run against the bare client: how much longer does the orchestration make it?"""

from __future__ import annotations

from typing import Any

from benchmarks.orchestration.bench import Bench, medians
from benchmarks.orchestration.load import Load

TITLE = "(a) One run, widths 16,16, 0.5 s a call (35 calls, 5 in sequence: ideal 2.5 s)"
LIMIT = 1.08
"""Of the bare client's time."""


def measure(bench: Bench) -> dict[str, Any]:
    """Alternate the two, so that a change of the machine's pace meets both."""
    delay_s = 0.1 if bench.quick else 0.5
    walls: dict[str, list[float]] = {"bare": [], "pdr-graph": []}
    cpu: dict[str, list[float]] = {"bare": [], "pdr-graph": []}
    loads = [
        Load(subject, settings={"delay_s": delay_s})
        for _ in range(bench.choose(9, 1))
        for subject in walls
    ]
    for figures in bench.measure(*loads):
        walls[figures.load["subject"]].append(figures.wall_s)
        cpu[figures.load["subject"]].append(1000 * figures.cpu_s)
    bare, ours = (medians(walls[subject])[1] for subject in walls)
    return {"wall_s": walls, "cpu_ms": cpu, "delay_s": delay_s, "ratio": ours / bare}


def table(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Show median, extremes and the ratio."""
    rows = []
    for subject, walls in data["wall_s"].items():
        least, middle, most = medians(walls)
        ratio = f"{data['ratio']:.3f} (limit {LIMIT})" if subject == "pdr-graph" else "1"
        cpu = medians(data["cpu_ms"][subject])[1]
        rows.append([subject, f"{middle:.3f}", f"{least:.3f} to {most:.3f}", ratio, f"{cpu:.0f}"])
    return ["client", "median s", "range", "ratio", "CPU ms a run"], rows
