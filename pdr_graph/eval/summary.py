"""One arm in numbers: its accuracy, its cost, and what a plain vote attains for that cost.

What would the arm's B_total have bought without any distilling or refining? The drafts of its first
round read no workspace, so they are independent attempts; those of all its samples are pooled,
problem by problem. If the arm spends B_total tokens a sample on a problem, this pays for
m = B_total / (tokens of one such draft) drafts. The estimates are

- the vote: maj@m over all draws of m drafts from the pool;
- best-of-m: pass@m, the accuracy with a verifier that is never wrong, so an upper bound.

m is not a whole number: the value lies on the line between its two neighbours, which is what
drawing one or the other by lot attains at exactly this budget. If a pool holds fewer than m drafts,
all of them vote and the problem is counted as short: the vote then gets less than its budget.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from pdr_graph.eval.attempts import ArmSamples, cost, count_votes, ended
from pdr_graph.eval.records import NO_ANSWER, DraftRecord, SampleRecord
from pdr_graph.eval.stats import (
    Estimate,
    IntervalOptions,
    PairedDifference,
    Votes,
    maj_at_k,
    mean_by_problem,
    paired_difference,
    pass_at_k,
    share_by_problem,
)

COSTS = ("b_seq", "b_total", "b_seq_nominal", "b_total_nominal", "seconds")
"""Sums of a ledger in model tokens, the nominal ones of allotted completion tokens; and seconds."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a cost spreads over the samples of an arm."""

    mean: Estimate
    """Mean over problems of the mean over their samples."""
    p95: float
    """95th percentile over samples."""


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
    pass_at_k: Mapping[int, Estimate]
    """By k."""
    maj_at_k: Mapping[int, Estimate]
    """By k; empty if answers cannot be compared."""
    no_answer_rate: float
    """Share of samples with a solution that states no answer."""
    truncation_rate: float
    """Share of samples whose solution the token limit cut, with or without an answer."""
    failure_rate: float
    """Share of samples without a solution."""
    reasons: Mapping[str, int]
    """Number of samples by `records.Reason`."""
    cost: Mapping[str, Spread]
    """By `COSTS`; empty if all samples failed."""
    estimated: bool
    """Whether any token count is an estimate."""


async def summarize(arm: ArmSamples, ks: Sequence[int], confidence: float) -> ArmSummary:
    """Summarize one arm.

    Args:
        arm: Its samples.
        ks: The k of pass@k and maj@k; every problem has so many samples.
        confidence: Coverage that every interval aims at.
    """
    samples, groups = arm.samples, arm.by_problem.values()
    votes = [await count_votes(arm.kind, group) for group in groups]

    def share(attained: Callable[[Votes, int], float], k: int) -> Estimate:
        return share_by_problem([attained(each, k) for each in votes], confidence)

    return ArmSummary(
        name=arm.name,
        num_problems=len(groups),
        num_samples=len(samples),
        num_owed=arm.num_owed,
        accuracy=share_by_problem(arm.accuracy_P(list(arm.by_problem)), confidence),
        pass_at_k={k: share(pass_at_k, k) for k in ks},
        maj_at_k={k: share(maj_at_k, k) for k in ks if arm.kind.has_short_answer},
        no_answer_rate=fmean(sample["reason"] in NO_ANSWER for sample in samples),
        truncation_rate=fmean(sample["truncated"] for sample in samples),
        failure_rate=fmean(sample["reason"] == "failed" for sample in samples),
        reasons=dict(Counter(sample["reason"] for sample in samples)),
        cost=_costs(arm, confidence),
        estimated=arm.estimated,
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
        for name in COSTS
    }


@dataclass(frozen=True, slots=True)
class MatchedVote:
    """An arm beside a plain vote of its first drafts that may spend as much."""

    arm: str
    num_problems: int
    num_drafts: float
    """Drafts that the budget pays for: m, mean over problems."""
    num_short: int
    """Problems whose pool holds fewer than m drafts."""
    accuracy: Estimate
    """The arm's own, on these problems."""
    vote: Estimate
    best: Estimate
    """Best-of-m with a perfect verifier."""
    over_vote: PairedDifference
    """The arm minus the vote."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """One problem's first drafts, and how many of them its budget pays for."""

    drafts: list[DraftRecord]
    affordable: float

    @property
    def num_drawn(self) -> float:
        return min(max(1.0, self.affordable), float(len(self.drafts)))


async def matched_vote(arm: ArmSamples, options: IntervalOptions) -> MatchedVote | None:
    """Return what a vote of an arm's first drafts attains for the arm's B_total.

    None if the arm has no drafts, or no answers to vote on.
    """
    if not arm.kind.has_short_answer:
        return None
    pools = {problem: pool for problem, group in arm.by_problem.items() if (pool := _pool(group))}
    if not pools:
        return None
    drawn = [(await count_votes(arm.kind, pool.drafts), pool.num_drawn) for pool in pools.values()]
    vote_P = np.array([_between(maj_at_k, *each) for each in drawn])
    best_P = np.array([_between(pass_at_k, *each) for each in drawn])
    own_P = arm.accuracy_P(list(pools))
    return MatchedVote(
        arm=arm.name,
        num_problems=len(pools),
        num_drafts=float(np.mean([pool.affordable for pool in pools.values()])),
        num_short=sum(pool.affordable > len(pool.drafts) for pool in pools.values()),
        accuracy=share_by_problem(own_P, options.confidence),
        vote=share_by_problem(vote_P, options.confidence),
        best=share_by_problem(best_P, options.confidence),
        over_vote=paired_difference(vote_P, own_P, options),
    )


def _pool(group: list[SampleRecord]) -> _Pool | None:
    """Gather one problem's first-round drafts; None if it has none of known cost."""
    samples = [sample for sample in group if ended(sample)]
    # A draft that was cut because the quorum was complete had no chance to answer.
    drafts = [
        draft
        for sample in samples
        for draft in sample["drafts"]
        if draft["round"] == 1 and draft["error"] != "cut"
    ]
    spent = sum(
        row["prompt_tokens"] + row["completion_tokens"]
        for sample in samples
        for row in sample["ledger"]["rows"]
        if row["round"] == 1 and row["node"] == "drafter"
    )
    if not drafts or not spent:
        return None
    b_total = float(np.mean([sample["ledger"]["b_total"] for sample in samples]))
    return _Pool(drafts, b_total * len(drafts) / spent)


def _between(attained: Callable[[Votes, int], float], votes: Votes, num_drawn: float) -> float:
    """Return the value at a fractional number of drafts, on the line between its neighbours."""
    low = math.floor(num_drawn)
    share = num_drawn - low
    value = (1.0 - share) * attained(votes, low)
    return value + share * attained(votes, low + 1) if share else value
