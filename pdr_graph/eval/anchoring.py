"""Anchoring: what the final call makes of a workspace with correct, mixed or wrong candidates.

The oracle distillers (arXiv 2510.01123, section 5) admit only correct, or only wrong, candidates
and so fill one row each; the other distillers fill the rows by what they happened to admit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from pdr_graph.answers import AnswerKind
from pdr_graph.eval.attempts import ArmSamples
from pdr_graph.eval.decomposition import last_drafts
from pdr_graph.eval.schema import DraftRecord, SampleRecord
from pdr_graph.eval.stats import CONFIDENCE, Estimate, mean_by_problem


class Admitted(StrEnum):
    """Which of the last drafts entered the workspace that the final call read."""

    CORRECT = "only correct"
    MIXED = "correct and wrong"
    WRONG = "only wrong"
    """Drafts that state no answer are among them."""
    NOTHING = "none"


@dataclass(frozen=True, slots=True)
class Anchoring:
    """The samples of one arm that read one kind of workspace."""

    arm: str
    distiller: str
    admitted: Admitted
    num_samples: int
    accuracy: Estimate
    """Mean over the problems that have such samples, of their means."""
    num_wrong: int
    """Samples that are not correct, and state an answer."""
    num_copied: int
    """Those of them whose answer is that of an admitted draft."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "arm": self.arm,
            "distiller": self.distiller,
            "admitted": self.admitted.name.lower(),
            "num_samples": self.num_samples,
            "accuracy": self.accuracy.to_json(),
            "num_wrong": self.num_wrong,
            "num_copied": self.num_copied,
        }


async def anchoring(arm: ArmSamples, *, confidence: float = CONFIDENCE) -> list[Anchoring]:
    """Group an arm's samples by what their last workspace admitted.

    Samples that failed, whose last drafts were not distilled, or whose distiller does not say what
    it admitted, are left out.
    """
    groups: dict[Admitted, list[SampleRecord]] = defaultdict(list)
    for sample in arm.finished:
        drafts = admitted_drafts(sample)
        if drafts is not None:
            groups[_mixture(drafts)].append(sample)
    return [
        await _row(arm, admitted, groups[admitted], confidence)
        for admitted in Admitted
        if admitted in groups
    ]


def admitted_drafts(sample: SampleRecord) -> list[DraftRecord] | None:
    """Return the drafts that the final call's workspace admitted; None if that is unknown."""
    drafts = last_drafts(sample)
    if not drafts:
        return None
    read = [
        each
        for each in sample["workspaces"]
        if each["round"] == drafts[0]["round"] and each["index"] == 0
    ]
    if not read or read[0]["sources"] is None:
        return None
    sources = set(read[0]["sources"])
    return [draft for draft in drafts if draft["index"] in sources]


def _mixture(drafts: Sequence[DraftRecord]) -> Admitted:
    if not drafts:
        return Admitted.NOTHING
    correct = sum(draft["correct"] for draft in drafts)
    if correct == len(drafts):
        return Admitted.CORRECT
    return Admitted.MIXED if correct else Admitted.WRONG


async def _row(
    arm: ArmSamples, admitted: Admitted, samples: Sequence[SampleRecord], confidence: float
) -> Anchoring:
    by_problem: dict[str, list[bool]] = defaultdict(list)
    for sample in samples:
        by_problem[sample["problem_id"]].append(sample["correct"])
    wrong = [each for each in samples if not each["correct"] and each["answer"] is not None]
    copied = [await _is_copied(sample, arm.kind) for sample in wrong]
    return Anchoring(
        arm=arm.name,
        distiller=arm.config.distiller,
        admitted=admitted,
        num_samples=len(samples),
        accuracy=mean_by_problem(
            [float(np.mean(group)) for group in by_problem.values()],
            confidence=confidence,
            bounds=(0.0, 1.0),
        ),
        num_wrong=len(wrong),
        num_copied=sum(copied),
    )


async def _is_copied(sample: SampleRecord, kind: AnswerKind) -> bool:
    final = sample["answer"]
    assert final is not None
    stated = {draft["answer"] for draft in admitted_drafts(sample) or []} - {None}
    if final in stated:
        return True
    # One after another: most end at the first few, and equivalence may need a worker.
    for answer in sorted(each for each in stated if each is not None):
        if await kind.same(answer, final):
            return True
    return False
