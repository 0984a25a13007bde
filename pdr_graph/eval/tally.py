"""A run's plain figures, in pure Python: what `pdr-graph eval` ends with.

Intervals and comparisons are another matter: see `summary.py` and `comparison.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from pdr_graph.eval.records import Run
from pdr_graph.eval.schema import SampleRecord

_NO_ANSWER = frozenset({"no_answer", "truncated"})


@dataclass(frozen=True, slots=True)
class Tally:
    """One arm: counts, and means over its samples."""

    arm: str
    samples: int
    correct: int
    accuracy: float
    """Share of right answers; 0 without samples."""
    no_answer: float
    """Share of solutions that state no answer, cut ones included."""
    failed: int
    b_seq: float
    b_total: float
    b_seq_nominal: float
    b_total_nominal: float
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return {name: value for name, value in asdict(self).items() if name != "arm"}


def tallies(run: Run) -> list[Tally]:
    """Return the figures of every arm, in the order of the header."""
    return [
        _tally(arm, [each for each in run.samples if each["arm"] == arm])
        for arm in run.header["arms"]
    ]


def _tally(arm: str, samples: Sequence[SampleRecord]) -> Tally:
    def mean(values: Sequence[float]) -> float:
        return fmean(values) if values else 0.0

    def spent(name: str) -> float:
        return mean([float(each["ledger"][name]) for each in samples])

    return Tally(
        arm=arm,
        samples=len(samples),
        correct=sum(each["correct"] for each in samples),
        accuracy=mean([float(each["correct"]) for each in samples]),
        no_answer=mean([float(each["reason"] in _NO_ANSWER) for each in samples]),
        failed=sum(each["reason"] == "failed" for each in samples),
        b_seq=spent("b_seq"),
        b_total=spent("b_total"),
        b_seq_nominal=spent("b_seq_nominal"),
        b_total_nominal=spent("b_total_nominal"),
        seconds=mean([each["seconds"] for each in samples]),
    )
