"""(d) Memory of a run in flight: the slope of the peak over the number of runs."""

from __future__ import annotations

from typing import Any

from benchmarks.orchestration.bench import Bench
from benchmarks.orchestration.fit import fit
from benchmarks.orchestration.load import Load

TITLE = "(d) Memory of a run in flight, with its 16 calls and their connections"


def measure(bench: Bench) -> dict[str, Any]:
    """Hold more and more runs in flight, each time in a fresh process."""
    levels = (2, 4) if bench.quick else (16, 64, 128, 256)
    results: dict[str, Any] = {}
    for subject in ("bare", "pdr-graph"):
        grown = []
        for level in levels:
            load = Load(
                subject,
                runs=level,
                at_once=level,
                widths=(16,),
                max_in_flight=16 * level,
                settings={"delay_s": 0.2 if bench.quick else 2.0},
            )
            grown.append(bench.measure(load)[0].memory_bytes)
        line = fit(levels, grown)
        results[subject] = {
            "runs": list(levels),
            "bytes": grown,
            "bytes_per_run": line.slope,
            "r_squared": line.r_squared,
        }
    return results


def table(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Show the growth at each level and its slope."""
    levels = next(iter(data.values()))["runs"]
    rows = [
        [
            subject,
            *(f"{grown / 1e6:.0f} MB" for grown in each["bytes"]),
            f"{each['bytes_per_run'] / 1e3:.0f} kB",
            f"{each['r_squared']:.3f}",
        ]
        for subject, each in data.items()
    ]
    return ["client", *(f"{level} runs" for level in levels), "a run", "R²"], rows
