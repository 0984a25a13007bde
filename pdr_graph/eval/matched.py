"""Majority vote and best-of-N for the tokens that an arm spends in all.

What would the same B_total have bought without any distilling or refining? The drafts of an arm's
first round read no workspace, so they are independent attempts; those of all its samples are
pooled, problem by problem. A problem on which the arm spends B_total tokens a sample affords
m = B_total / (tokens of one such draft) drafts. The estimate is

- the vote: maj@m over all draws of m from the pool;
- best-of-m: pass@m, the accuracy with a verifier that is never wrong, so an upper bound.

m is no whole number: the value lies on the line between the two next to it, which is what drawing
one or the other by lot attains, at just this budget. Where a pool holds fewer drafts than m, all
of them vote, and the problem is counted as short: the vote is then given less than its budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdr_graph.eval.attempts import ArmSamples, ended
from pdr_graph.eval.pairs import NUM_RESAMPLES, PairedDifference, paired_difference
from pdr_graph.eval.schema import DraftRecord, SampleRecord
from pdr_graph.eval.stats import (
    CONFIDENCE,
    Estimate,
    Floats,
    Votes,
    maj_at_k,
    mean_by_problem,
    pass_at_k,
)
from pdr_graph.eval.votes import count_votes


@dataclass(frozen=True, slots=True)
class Matched:
    """An arm beside a plain vote that may spend as much."""

    arm: str
    num_problems: int
    num_drafts: float
    """Drafts that the budget buys: m, mean over problems."""
    num_short: int
    """Problems whose pool holds fewer than m."""
    accuracy: Estimate
    """The arm's own, on these problems."""
    vote: Estimate
    best: Estimate
    """Best-of-m with a perfect verifier."""
    over_vote: PairedDifference
    """The arm minus the vote."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "arm": self.arm,
            "num_problems": self.num_problems,
            "num_drafts": self.num_drafts,
            "num_short": self.num_short,
            "accuracy": self.accuracy.to_json(),
            "vote": self.vote.to_json(),
            "best": self.best.to_json(),
            "over_vote": self.over_vote.to_json(),
        }


@dataclass(frozen=True, slots=True)
class _Pool:
    """One problem's drafts, and how many of them its budget buys."""

    drafts: list[DraftRecord]
    affordable: float

    @property
    def num_drawn(self) -> float:
        return min(max(1.0, self.affordable), float(len(self.drafts)))


async def matched_vote(
    arm: ArmSamples,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Matched | None:
    """Return what a vote of an arm's first drafts attains for the arm's B_total.

    None where the arm has no drafts, or no answers to vote on.
    """
    if not arm.kind.has_short_answer:
        return None
    pools = {problem: pool for problem, group in arm.by_problem.items() if (pool := _pool(group))}
    if not pools:
        return None
    votes_P = [await count_votes(arm.kind, pool.drafts) for pool in pools.values()]
    drawn_P = [pool.num_drawn for pool in pools.values()]
    vote_P = [_between(maj_at_k, *each) for each in zip(votes_P, drawn_P, strict=True)]
    best_P = [_between(_best, *each) for each in zip(votes_P, drawn_P, strict=True)]
    own_P = arm.accuracy_P(list(pools))

    def share(values: Sequence[float] | Floats) -> Estimate:
        return mean_by_problem(values, confidence=confidence, bounds=(0.0, 1.0))

    return Matched(
        arm=arm.name,
        num_problems=len(pools),
        num_drafts=float(np.mean([pool.affordable for pool in pools.values()])),
        num_short=sum(pool.affordable > len(pool.drafts) for pool in pools.values()),
        accuracy=share(own_P),
        vote=share(vote_P),
        best=share(best_P),
        over_vote=paired_difference(
            vote_P, own_P, confidence=confidence, seed=seed, num_resamples=num_resamples
        ),
    )


def _pool(group: list[SampleRecord]) -> _Pool | None:
    """Gather one problem's first-round drafts; None if it has none whose cost is known."""
    samples = [sample for sample in group if ended(sample)]
    # A draft that was cut because a quorum was in had no chance to answer.
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
    """Return the value at a number of drafts that need not be whole, on the line between."""
    low = math.floor(num_drawn)
    share = num_drawn - low
    value = (1.0 - share) * attained(votes, low)
    return value + share * attained(votes, low + 1) if share else value


def _best(votes: Votes, k: int) -> float:
    return pass_at_k(votes.num_attempts, votes.num_correct, k)
