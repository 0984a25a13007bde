"""(b) Many runs at once: CPU a call and runs per second, beside the bare client and the peers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.orchestration.bench import Bench, WorkerError
from benchmarks.orchestration.load import Figures, Load
from benchmarks.orchestration.subjects import PEERS, SUBJECTS

TITLE = (
    "(b) Runs at once, 0.1 s a call: CPU ms a call (runs per second); at most 256 calls in flight "
    "for bare and pdr-graph"
)
LEVELS = (1, 16, 64, 256)
LIMIT_S = 90.0


def measure(bench: Bench) -> dict[str, Any]:
    """Give every subject every level, each in a process of its own."""
    levels = (1, 4) if bench.quick else LEVELS
    left_out = list(PEERS) if bench.peers_python is None else []
    results: dict[str, dict[str, Any]] = {}
    for subject in SUBJECTS:
        if subject in left_out:
            continue
        results[subject] = {}
        for level in levels:
            load = Load(
                subject,
                runs=level if bench.quick else max(level, min(32, 8 * level)),
                at_once=level,
                widths=(16,) if subject == "pdr-graph majority" else (16, 16),
                settings={"delay_s": 0.1},
                limit_s=LIMIT_S,
            )
            try:
                figures = bench.measure(load)[0]
            except WorkerError as error:
                bench.say(f"{subject}, {level} at once: {error}")
                results[subject][str(level)] = {"error": str(error)}
            else:
                results[subject][str(level)] = _kept(figures)
    return {"subjects": results, "left_out": left_out}


def _kept(figures: Figures) -> dict[str, Any]:
    kept = asdict(figures)
    for name in ("latencies_s", "ledger"):
        del kept[name]
    return kept | {
        "cpu_ms_per_call": figures.cpu_ms_per_call,
        "runs_per_s": figures.runs_per_s,
        "calls_per_run": figures.served["calls"] / max(1, figures.done),
        "endpoint_busy": figures.endpoint_busy,
    }


def table(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Show a row for each subject and a column for each level."""
    subjects = data["subjects"]
    levels = list(next(iter(subjects.values())))
    rows = [
        [subject, SUBJECTS[subject], *(_cell(cells[level]) for level in levels)]
        for subject, cells in subjects.items()
    ]
    rows += [[subject, "not installed", *("" for _ in levels)] for subject in data["left_out"]]
    return ["client", "one run", *levels], rows


def _cell(cell: dict[str, Any]) -> str:
    if "runs_per_s" not in cell:
        return f"failed: {cell['error'][:60]}"
    text = f"{cell['cpu_ms_per_call']:.2f} ({cell['runs_per_s']:.2f}/s)"
    if cell["failed"]:
        text += f", {cell['failed']} failed"
    if cell["late"]:
        text += f", {cell['late']} not done in {LIMIT_S:.0f} s"
    return text
