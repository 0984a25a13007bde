"""Where answers are won and lost: every sample in exactly one class; and anchoring.

A run passes a correct answer on through stages: drafts of round 1, their workspace, drafts of
round 2, and so on to the final call. If a sample does not end correct although one of its drafts
was, the answer was lost right after the last stage that held it. That stage names the class.

A workspace "holds" a correct answer if one stands in its text, so a number that is there by chance
counts. But if no draft was correct, the sample counts as one without a correct draft. If the drafts
of all rounds vote together (`pool_rounds`), one stage follows them: the vote.

Anchoring is what the final call makes of a workspace with correct, mixed or wrong candidates. The
oracle distillers (arXiv 2510.01123, section 5) admit only correct, or only wrong, candidates and so
fill one row each; other distillers fill the rows by what they happened to admit.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

from pdr_graph.answers import AnswerKind
from pdr_graph.config import SHORT_FINISHES
from pdr_graph.eval.records import NO_ANSWER, DraftRecord, SampleRecord
from pdr_graph.eval.stats import Estimate, share_by_problem
from pdr_graph.eval.summary import ArmSamples, majority_is_correct


class Outcome(StrEnum):
    """The class of one sample."""

    CORRECT_WITH_MAJORITY = "correct, as most drafts"
    """A vote of the last drafts (of all drafts, if rounds vote together) is correct too. A tie goes
    to the earlier draft."""
    CORRECT_AGAINST_MAJORITY = "correct, against most drafts"
    """A draft was correct, but a vote of those drafts is not."""
    CORRECT_WITHOUT_DRAFT = "correct, though no draft was"
    CORRECT_ALONE = "correct in a single call"
    """The arm has no drafts."""
    NO_CORRECT_DRAFT = "no draft was correct"
    LOST_IN_DISTILLATION = "lost in distillation"
    """Correct drafts, and then a workspace without a correct answer."""
    LOST_IN_REDRAFTING = "lost in a further round of drafts"
    """A workspace with a correct answer, and then no correct draft."""
    LOST_IN_REFINEMENT = "lost in refinement"
    """A last workspace with a correct answer, and then another answer or none."""
    LOST_IN_CHOICE = "lost in the vote or selection"
    """Correct last drafts, and then another draft was chosen."""
    WRONG_ALONE = "not correct in a single call"
    """The arm has no drafts."""
    UNJUDGED = "not judged: the checker timed out"
    FAILED = "failed: no solution"


CORRECT = frozenset(outcome for outcome in Outcome if outcome.startswith("correct"))
"""The outcomes of correct samples."""


@dataclass(frozen=True, slots=True)
class Decomposition:
    """How the samples of one arm divide into outcomes."""

    arm: str
    counts: Mapping[Outcome, int]
    """By outcome, all of them in order; they sum to the number of samples."""
    silent: Mapping[Outcome, int]
    """How many of them state no answer."""

    @property
    def num_samples(self) -> int:
        """All samples."""
        return sum(self.counts.values())

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "num_samples": self.num_samples,
            "outcomes": {
                outcome.name.lower(): {"samples": count, "without_answer": self.silent[outcome]}
                for outcome, count in self.counts.items()
            },
        }


async def decompose(arm: ArmSamples) -> Decomposition:
    """Divide an arm's samples into outcomes."""
    counts: Counter[Outcome] = Counter()
    silent: Counter[Outcome] = Counter()
    for sample in arm.samples:
        outcome = await outcome_of(sample, arm.kind, pooled=arm.config.pool_rounds)
        counts[outcome] += 1
        silent[outcome] += sample["reason"] in NO_ANSWER
    return Decomposition(
        arm.name,
        {outcome: counts[outcome] for outcome in Outcome},
        {outcome: silent[outcome] for outcome in Outcome},
    )


async def outcome_of(sample: SampleRecord, kind: AnswerKind, *, pooled: bool = False) -> Outcome:
    """Return the class of a sample.

    Args:
        sample: A finished or failed sample.
        kind: Decides when two answers are the same.
        pooled: Whether the drafts of all rounds vote together.
    """
    if sample["reason"] == "failed":
        return Outcome.FAILED
    if sample["reason"] == "timeout":
        return Outcome.UNJUDGED
    if sample["correct"]:
        return await _gain(sample, kind, pooled=pooled)
    return _loss(sample, pooled=pooled)


async def _gain(sample: SampleRecord, kind: AnswerKind, *, pooled: bool) -> Outcome:
    drafts = sample["drafts"]
    if not drafts:
        return Outcome.CORRECT_ALONE
    if not any(draft["correct"] for draft in drafts):
        return Outcome.CORRECT_WITHOUT_DRAFT
    if await majority_is_correct(kind, drafts if pooled else _last_drafts(sample)):
        return Outcome.CORRECT_WITH_MAJORITY
    return Outcome.CORRECT_AGAINST_MAJORITY


_POOLED = SHORT_FINISHES | {"consensus"}
"""Finishes that choose among the drafts of all rounds, where they are pooled."""


def _loss(sample: SampleRecord, *, pooled: bool) -> Outcome:
    drafts, workspaces = sample["drafts"], sample["workspaces"]
    if not drafts:
        return Outcome.WRONG_ALONE
    right = [draft["round"] for draft in drafts if draft["correct"]]
    if not right:
        return Outcome.NO_CORRECT_DRAFT
    if pooled and sample["finish"] in _POOLED:
        return Outcome.LOST_IN_CHOICE
    last = max(draft["round"] for draft in drafts)
    held = [each["round"] for each in workspaces if each["holds_correct"]]
    if max(held, default=0) >= max(right):
        # Within one round, the workspace comes after the drafts.
        return Outcome.LOST_IN_REFINEMENT if max(held) >= last else Outcome.LOST_IN_REDRAFTING
    # A run that votes or selects does not distil its last drafts.
    distilled = any(each["round"] == max(right) for each in workspaces)
    if max(right) == last and not distilled:
        return Outcome.LOST_IN_CHOICE
    return Outcome.LOST_IN_DISTILLATION


def _last_drafts(sample: SampleRecord) -> list[DraftRecord]:
    """Return the drafts of the last round that has drafts."""
    last = max((draft["round"] for draft in sample["drafts"]), default=0)
    return [draft for draft in sample["drafts"] if draft["round"] == last]


class Admitted(StrEnum):
    """Which of the last drafts entered the workspace that the final call read."""

    CORRECT = "only correct"
    MIXED = "correct and wrong"
    WRONG = "only wrong"
    """Drafts without an answer count as wrong."""
    NOTHING = "none"


@dataclass(frozen=True, slots=True)
class Anchoring:
    """The samples of one arm whose final call read one kind of workspace."""

    arm: str
    distiller: str
    admitted: Admitted
    num_samples: int
    accuracy: Estimate
    """Mean over the problems with such samples, of their means."""
    num_wrong: int
    """Samples that state an answer which is not correct."""
    num_copied: int
    """How many of these answers are an admitted draft's."""


_Read = tuple[SampleRecord, list[DraftRecord]]
"""A sample, and the drafts that its last workspace admitted."""


async def anchoring(arm: ArmSamples, confidence: float) -> list[Anchoring]:
    """Group an arm's samples by what their last workspace admitted.

    Left out are samples that failed, whose last drafts were not distilled, or whose distiller does
    not tell what it admitted.
    """
    groups: dict[Admitted, list[_Read]] = defaultdict(list)
    for sample in arm.finished:
        drafts = _admitted_drafts(sample)
        if drafts is not None:
            groups[_mixture(drafts)].append((sample, drafts))
    return [
        await _row(arm, admitted, groups[admitted], confidence)
        for admitted in Admitted
        if admitted in groups
    ]


def _admitted_drafts(sample: SampleRecord) -> list[DraftRecord] | None:
    """Return the drafts that the final call's workspace admitted; None if that is unknown."""
    drafts = _last_drafts(sample)
    read = [
        each["sources"]
        for each in sample["workspaces"]
        if drafts and each["round"] == drafts[0]["round"] and each["index"] == 0
    ]
    if not read or read[0] is None:
        return None
    return [draft for draft in drafts if draft["index"] in read[0]]


def _mixture(drafts: Sequence[DraftRecord]) -> Admitted:
    if not drafts:
        return Admitted.NOTHING
    correct = sum(draft["correct"] for draft in drafts)
    if correct == len(drafts):
        return Admitted.CORRECT
    return Admitted.MIXED if correct else Admitted.WRONG


async def _row(
    arm: ArmSamples, admitted: Admitted, group: Sequence[_Read], confidence: float
) -> Anchoring:
    by_problem: dict[str, list[bool]] = defaultdict(list)
    copied = []
    for sample, drafts in group:
        by_problem[sample["problem_id"]].append(sample["correct"])
        if not sample["correct"] and sample["answer"] is not None:
            copied.append(await _is_stated(sample["answer"], drafts, arm.kind))
    return Anchoring(
        arm=arm.name,
        distiller=arm.config.distiller,
        admitted=admitted,
        num_samples=len(group),
        accuracy=share_by_problem([fmean(each) for each in by_problem.values()], confidence),
        num_wrong=len(copied),
        num_copied=sum(copied),
    )


async def _is_stated(answer: str, drafts: Sequence[DraftRecord], kind: AnswerKind) -> bool:
    stated = {draft["answer"] for draft in drafts if draft["answer"] is not None}
    if answer in stated:
        return True
    # One after another: equivalence may need a worker, and most searches end early.
    for each in sorted(stated):
        if await kind.same(each, answer):
            return True
    return False
