"""What the evaluations of one study say, model by model and problem by problem."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdr_graph.eval.records import SAMPLES, SampleRecord, read_run

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's samples, one of each strategy at each problem."""

    by_strategy: dict[str, list[SampleRecord]]
    """In the order of the problems' ids."""

    def accuracy_P(self, strategy: str) -> Values:
        """Return whether the final answer is right."""
        return self._values(strategy, lambda sample: sample["correct"])

    def any_draft_P(self, strategy: str) -> Values:
        """Return whether one of the first round's drafts is right: pass@M."""
        return self._values(strategy, lambda sample: any(first_drafts(sample)))

    def drafts_P(self, strategy: str) -> Values:
        """Return the share of the first round's drafts that are right: pass@1 of a draft."""
        return self._values(strategy, lambda sample: float(np.mean(first_drafts(sample))))

    def _values(self, strategy: str, value: Callable[[SampleRecord], float]) -> Values:
        return np.array([value(each) for each in self.by_strategy[strategy]], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of a workspace, over samples of PDR with one round."""

    right_if_held: float
    """Share of right answers where a draft was right."""
    blind_if_held: float
    """What taking any of the drafts would give there: the share of right drafts."""
    right_if_not: float
    """Share of right answers where no draft was."""
    held: float
    """Share of samples in which a draft was right."""


def first_drafts(sample: SampleRecord) -> list[bool]:
    """Return which drafts of the first round are right."""
    return [draft["correct"] for draft in sample["drafts"] if draft["round"] == 1]


def reading(samples: Sequence[SampleRecord]) -> Reading:
    """Say how workspaces were used."""
    held = [each for each in samples if any(first_drafts(each))]
    others = [each for each in samples if not any(first_drafts(each))]
    return Reading(
        right_if_held=_mean([each["correct"] for each in held]),
        blind_if_held=_mean([float(np.mean(first_drafts(each))) for each in held]),
        right_if_not=_mean([each["correct"] for each in others]),
        held=len(held) / max(1, len(samples)),
    )


def measured(folder: Path) -> Measured | None:
    """Read an evaluation; None where there is none yet."""
    if not (folder / SAMPLES).exists():
        return None
    by_strategy: dict[str, list[SampleRecord]] = {}
    for sample in sorted(read_run(folder).samples, key=lambda each: each["problem_id"]):
        by_strategy.setdefault(sample["arm"], []).append(sample)
    return Measured(by_strategy)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
