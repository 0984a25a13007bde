"""The figures as a Markdown table, and whether they meet the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.checkpoints.runs import CELL_LIMIT_S

Figures = Mapping[str, Any]
"""The figures of one saver, or, as `missing`, why there are none."""

REDIS = ("plainredis", "aws", "official")
"""Other savers that use Redis."""
_CALLS = {
    "put": "`put` p50, alone",
    "put_writes": "`put_writes` p50, alone",
    "aput": "`put` p50, in a run",
    "aput_writes": "`put_writes` p50, in a run",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure of ours, compared with those of others."""

    what: str
    limit: float
    ratio: float
    at_least: bool = False
    """Whether more is better."""

    @property
    def met(self) -> bool:
        """Whether the ratio is within the limit."""
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met" if self.met else "**not met**"
        return f"| {self.what} | {sign} {self.limit:g} | {self.ratio:.2f} | {verdict} |"


def table(results: Mapping[str, Figures], levels: Sequence[int]) -> str:
    """Return the table, one row a saver; one that was not measured says why."""
    head = ["saver", "MB sent", "MB resident", "put", "put_writes", "put in a run"]
    head += ["put_writes in a run", "get_state", "history", *(f"{n} runs" for n in levels)]
    rows = [head, ["---"] * len(head)]
    for name, found in results.items():
        missing = found.get("missing")
        empty = [""] * (len(head) - 2)
        rows.append([name, str(missing), *empty] if missing else _row(name, found, levels))
    legend = (
        "MB of a run of 48 drafts of 32 kB. Latencies are p50 / p99 in ms, of reads p50; the last "
        "columns are runs per second by runs at once (client CPU in ms a run)."
    )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{legend}"


def _row(name: str, found: Figures, levels: Sequence[int]) -> list[str]:
    row = [name, f"{found['sent'] / 1e6:.2f}", f"{found['resident'] / 1e6:.2f}"]
    row += [f"{found[key]['p50']:.2f} / {found[key]['p99']:.1f}" for key in _CALLS]
    row += [f"{found[key]['p50']:.1f}" for key in ("get_state", "history")]
    for level in levels:
        cell = found["throughput"][str(level)]
        failed = f", {cell['failed']} failed" if cell["failed"] else ""
        late = f", {cell['late']} cut off at {CELL_LIMIT_S:.0f} s" if cell["late"] else ""
        row.append(f"{cell['runs_per_s']:.1f} ({cell['cpu_ms']:.0f}{failed}{late})")
    return row


def targets(results: Mapping[str, Figures]) -> list[Target]:
    """Compare ours with the others that were measured."""
    measured = {name: found for name, found in results.items() if "missing" not in found}
    ours = measured.pop("ours", None)
    return list(_targets(ours, measured)) if ours else []


def _targets(ours: Figures, others: Mapping[str, Figures]) -> Iterator[Target]:
    for name, limit in (("official", 0.35), ("plainredis", 0.5)):
        if name in others:
            for key in ("sent", "resident"):
                yield Target(f"bytes {key}, of {name}'s", limit, ours[key] / others[name][key])
    on_redis = [others[name] for name in REDIS if name in others]
    if on_redis:
        for key, what in _CALLS.items():
            best = min(found[key]["p50"] for found in on_redis)
            yield Target(f"{what}, of the best other on Redis", 0.5, ours[key]["p50"] / best)
    pace: Callable[[Figures], float] = lambda found: found["throughput"]["64"]["runs_per_s"]  # noqa: E731
    if others and "64" in ours["throughput"]:
        best = max(map(pace, others.values()))
        yield Target("runs a second at 64 at once, of the best other", 1.5, pace(ours) / best, True)
    failed = sum(cell["failed"] + cell["late"] for cell in ours["throughput"].values())
    yield Target("failures of ours at any concurrency", 0, failed)


def targets_table(found: Sequence[Target]) -> str:
    """Return the table of targets."""
    return "\n".join(["| target | limit | here | |", "|---|---|---|---|", *map(str, found)])
