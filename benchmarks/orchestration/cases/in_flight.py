"""(c) A thousand calls in flight to a host name: nothing fails and the event loop stays awake."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from benchmarks.orchestration.bench import Bench
from benchmarks.orchestration.load import Load

TITLE = "(c) Calls in flight to `localhost`; event-loop lag in ms, sampled every 10 ms"
LIMIT_MS = 100.0
"""Of the lag's 99th percentile."""


def measure(bench: Bench) -> dict[str, Any]:
    """Start all drafts before the first is done: as many runs, and as one wide run."""
    delay_s = 1.0 if bench.quick else 6.0
    runs, wide = bench.choose(63, 4), bench.choose(1000, 32)
    shapes = {
        f"{runs} runs of 16 drafts": {"runs": runs, "at_once": runs, "widths": (16,)},
        f"1 run of {wide:,} drafts": {"widths": (wide,)},
    }
    results = {}
    for subject in ("bare", "pdr-graph"):
        for shape, fields in shapes.items():
            load = Load(
                subject,
                **fields,  # type: ignore[arg-type]  # one type for all values of a literal
                max_in_flight=1024,
                settings={"delay_s": delay_s},
            )
            results[f"{subject}, {shape}"] = asdict(bench.measure(load)[0]) | {"ledger": []}
    return {"loads": results}


def table(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Show how many calls were in flight, what failed, and the lag."""
    rows = []
    for name, each in data["loads"].items():
        lag = each["lag_ms"]
        rows.append(
            [
                name,
                str(each["served"]["peak_in_flight"]),
                str(each["failed"] + each["late"]),
                f"{lag['p50']:.0f}",
                f"{lag['p99']:.0f}",
                f"{lag['max']:.0f}",
                f"{each['wall_s']:.1f}",
            ]
        )
    return ["client", "peak in flight", "failed", "p50", "p99", "max", "wall s"], rows
