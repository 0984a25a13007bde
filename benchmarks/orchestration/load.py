"""What a worker is asked to do, and what it answers; plain data, since it crosses processes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

PROBLEM = "How many primes are there below one hundred? Show each step. " * 8
"""About 500 characters, or 120 tokens."""


@dataclass(frozen=True, slots=True)
class Load:
    """Some runs of one subject, so many at once."""

    subject: str
    """A name of `subjects.SUBJECTS`."""
    runs: int = 1
    at_once: int = 1
    widths: tuple[int, ...] = (16, 16)
    """Drafts in each round, for the subjects that have rounds."""
    quorum: float = 1.0
    max_in_flight: int = 256
    """Calls at once, for the subjects that can be told."""
    settings: dict[str, Any] = field(default_factory=dict)
    """How the endpoint answers (`server.Settings`)."""
    limit_s: float = 240.0
    """Runs that are not done by then are cut off, and counted."""


@dataclass(frozen=True, slots=True)
class Job:
    """The loads of one worker, one after another in one process."""

    loads: list[Load]
    port: int
    """The endpoint's."""
    store: str
    """URL of the checkpoint store, for the subject that uses one."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Job:
        """Undo `to_json`."""
        loads = [Load(**{**each, "widths": tuple(each["widths"])}) for each in data["loads"]]
        return cls(loads, data["port"], data["store"])


@dataclass(frozen=True, slots=True)
class Figures:
    """What came of a load."""

    load: dict[str, Any]
    done: int
    failed: int
    late: int
    """Runs that were cut off at the limit."""
    error: str | None
    """The first failure's."""
    wall_s: float
    cpu_s: float
    """Of the client's process, all threads."""
    latencies_s: list[float]
    """Of the runs that are done."""
    ledger: list[dict[str, Any]]
    """For each run: its own account of tokens, where the subject keeps one."""
    served: dict[str, Any]
    """The endpoint's account (`server.Served`)."""
    lag_ms: dict[str, float]
    """Event-loop lag: p50, p99, max; empty for a subject without a loop."""
    memory_bytes: int
    """Growth of the process's peak memory over what it had before the load."""

    @property
    def cpu_ms_per_call(self) -> float:
        """Client CPU per request to the model."""
        calls: int = self.served["calls"]
        return 1000 * self.cpu_s / max(1, calls)

    @property
    def runs_per_s(self) -> float:
        """Finished runs per second."""
        return self.done / self.wall_s

    @property
    def endpoint_busy(self) -> float:
        """Share of the time that the endpoint computed; near 1 it would be the bottleneck."""
        cpu_s: float = self.served["cpu_s"]
        return cpu_s / self.wall_s
