"""What one arm attained and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pdr_graph.eval.attempts import ArmSamples, cost, count_votes
from pdr_graph.eval.stats import CONFIDENCE, Estimate, maj_at_k, mean_by_problem, pass_at_k

BUDGETS = ("b_seq", "b_total", "b_seq_nominal", "b_total_nominal")
"""Sums of a ledger, in model tokens; the nominal ones count allotted completion tokens."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a cost spreads over the samples of an arm."""

    mean: Estimate
    """Mean over problems of the mean over their samples."""
    p95: float
    """95th percentile over samples."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {"mean": self.mean.to_json(), "p95": self.p95}


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm in numbers."""

    name: str
    num_problems: int
    num_samples: int
    num_owed: int
    """Samples that were asked for and are not finished."""
    accuracy: Estimate
    """mean@n; failed samples are not correct."""
    pass_at: Mapping[int, Estimate]
    """By k."""
    maj_at: Mapping[int, Estimate]
    """By k; empty where answers cannot be compared."""
    reasons: Mapping[str, int]
    """Samples by what came of checking them."""
    num_cut: int
    """Samples whose solution the token limit cut, with or without an answer."""
    cost: Mapping[str, Spread] = field(default_factory=dict)
    """By `BUDGETS`, and `seconds`; empty where all samples failed."""
    estimated: bool = False
    """Whether any token count rests on an estimate."""

    @property
    def no_answer_rate(self) -> float:
        """Share of the samples that ended, and whose solution states no answer."""
        return (self.reasons["no_answer"] + self.reasons["truncated"]) / self.num_samples

    @property
    def truncation_rate(self) -> float:
        """Share of samples whose solution the token limit cut."""
        return self.num_cut / self.num_samples

    @property
    def failure_rate(self) -> float:
        """Share of samples that came to no solution."""
        return self.reasons["failed"] / self.num_samples

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "num_problems": self.num_problems,
            "num_samples": self.num_samples,
            "num_owed": self.num_owed,
            "accuracy": self.accuracy.to_json(),
            "pass_at_k": {str(k): each.to_json() for k, each in self.pass_at.items()},
            "maj_at_k": {str(k): each.to_json() for k, each in self.maj_at.items()},
            "no_answer_rate": self.no_answer_rate,
            "truncation_rate": self.truncation_rate,
            "failure_rate": self.failure_rate,
            "reasons": dict(self.reasons),
            "cost": {name: each.to_json() for name, each in self.cost.items()},
            "estimated": self.estimated,
        }


async def summarize(
    arm: ArmSamples, ks: Sequence[int], *, confidence: float = CONFIDENCE
) -> ArmSummary:
    """Sum one arm up.

    Args:
        arm: Its samples.
        ks: For pass@k and maj@k.
        confidence: Of every interval.

    Raises:
        ConfigError: a problem has fewer samples than a k.
    """
    samples = arm.samples
    votes = [await count_votes(arm.kind, group) for group in arm.by_problem.values()]
    right = [sum(sample["correct"] for sample in group) for group in arm.by_problem.values()]
    sizes = [len(group) for group in arm.by_problem.values()]

    def share(values: Sequence[float]) -> Estimate:
        return mean_by_problem(values, confidence=confidence, bounds=(0.0, 1.0))

    return ArmSummary(
        name=arm.name,
        num_problems=len(arm.by_problem),
        num_samples=len(samples),
        num_owed=arm.num_owed,
        accuracy=share([c / n for c, n in zip(right, sizes, strict=True)]),
        pass_at={
            k: share([pass_at_k(n, c, k) for c, n in zip(right, sizes, strict=True)]) for k in ks
        },
        maj_at={
            k: share([maj_at_k(each, k) for each in votes]) for k in ks if arm.kind.has_short_answer
        },
        reasons=Counter(sample["reason"] for sample in samples),
        num_cut=sum(sample["truncated"] for sample in samples),
        cost=_costs(arm, confidence),
        estimated=any(row["estimated"] for each in arm.finished for row in each["ledger"]["rows"]),
    )


def _costs(arm: ArmSamples, confidence: float) -> dict[str, Spread]:
    problems = arm.finished_problems()
    if not problems:
        return {}
    return {
        name: Spread(
            mean_by_problem(arm.cost_P(name, problems), confidence=confidence),
            float(np.quantile([cost(sample, name) for sample in arm.finished], 0.95)),
        )
        for name in (*BUDGETS, "seconds")
    }
