"""(f) Call times with a heavy tail: what waiting for a quorum gains, and what it throws away."""

from __future__ import annotations

from typing import Any

from benchmarks.orchestration.bench import Bench
from benchmarks.orchestration.lag import percentile
from benchmarks.orchestration.load import Load

TITLE = "(f) Widths 16,16, log-normal call times (median 0.25 s, sigma 1), 16 runs at once"
QUORUMS = (1.0, 0.75)


def measure(bench: Bench) -> dict[str, Any]:
    """Run the same problems with the same seeds under each quorum.

    A call's length in tokens goes with its time, as it does at a server, so the slow drafts are
    the long ones.
    """
    runs = bench.choose(96, 4)
    results: dict[str, Any] = {"quorums": {}}
    for quorum in QUORUMS:
        load = Load(
            "pdr-graph",
            runs=runs,
            at_once=16,
            quorum=quorum,
            max_in_flight=1024,
            settings={
                "lognormal": (0.02 if bench.quick else 0.25, 1.0),
                "tokens_per_s": 400.0,
            },
        )
        figures = bench.measure(load)[0]
        served = figures.served
        completed, aborted = served["completion_tokens"], served["aborted_tokens"]
        results["quorums"][f"{quorum:g}"] = {
            "runs": figures.done,
            "latencies_s": figures.latencies_s,
            "p50_s": percentile(figures.latencies_s, 50),
            "p95_s": percentile(figures.latencies_s, 95),
            "completion_tokens": completed + aborted,
            "wasted_tokens": aborted,
            "aborted_calls": served["aborted"],
            "charged_tokens": sum(row["completion_tokens"] for row in figures.ledger),
        }
    return results


def table(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Show latencies and tokens; the first row is what the others are compared with."""
    first = next(iter(data["quorums"].values()))
    rows = []
    for quorum, each in data["quorums"].items():
        tokens = each["completion_tokens"]
        rows.append(
            [
                quorum,
                f"{each['p50_s']:.2f}",
                f"{each['p95_s']:.2f}",
                f"{tokens / each['runs']:,.0f}",
                f"{1 - tokens / first['completion_tokens']:.0%}",
                f"{each['wasted_tokens'] / tokens:.0%}",
                f"{each['charged_tokens'] / tokens:.3f}",
            ]
        )
    head = ["quorum", "p50 s", "p95 s", "completion tokens a run", "saved", "of them cut off"]
    return [*head, "ledger / server"], rows
