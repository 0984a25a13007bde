"""Two arms on the same problems: the difference in accuracy, the ratio in tokens.

Problems differ far more than arms do, so arms are compared problem by problem. The difference has
a t interval over problems, a bootstrap over problems (BCa) and a sign-flip p; the last asks how
often so large a mean difference would come of arms that are the same. Several contrasts share one
error rate by Holm's procedure.

Sources: Efron 1987 for BCa; Holm 1979; both as in scipy and statsmodels.

Majority vote and best-of-N for the tokens that an arm spends in all.

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
from scipy import stats

from pdr_graph.errors import ConfigError
from pdr_graph.eval.attempts import ArmSamples, count_votes, ended
from pdr_graph.eval.records import DraftRecord, SampleRecord
from pdr_graph.eval.stats import (
    CONFIDENCE,
    Estimate,
    Floats,
    Interval,
    Votes,
    maj_at_k,
    mean_by_problem,
    pass_at_k,
)

MOST_EXACT_FLIPS = 16
"""Problems that differ, up to which all 2^P sign patterns are tried."""
NUM_FLIPS = 99_999
"""Sign patterns drawn at random where there are more; p is then at least 1/100,000."""
NUM_RESAMPLES = 9_999
"""Bootstrap samples."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """How much more accurate one arm is than another, on the problems that both tried."""

    estimate: Estimate
    """Mean over problems of the difference of their mean accuracies, in [-1, 1]."""
    bootstrap: Interval | None
    """None where the difference is the same on every problem."""
    p_value: float
    """Two-sided sign-flip p, before any correction."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            **self.estimate.to_json(),
            "bootstrap": None if self.bootstrap is None else self.bootstrap.to_json(),
            "p_value": self.p_value,
        }


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """How many tokens one arm spends for each token of another, on the problems of both."""

    value: float
    """Ratio of the mean spends: below 1 the arm is cheaper."""
    interval: Interval | None
    """Bootstrap over problems; None where the ratio is the same on every problem."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "value": self.value,
            "bootstrap": None if self.interval is None else self.interval.to_json(),
        }


def paired_difference(
    reference_P: Sequence[float] | Floats,
    other_P: Sequence[float] | Floats,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedDifference:
    """Compare two arms on the same problems, `other` minus `reference`.

    Args:
        reference_P: Mean accuracy of the reference on each problem.
        other_P: The same of the other arm, in the same order.
        confidence: Coverage that both intervals aim at.
        seed: Of the bootstrap, and of the sign flips where they are drawn.
        num_resamples: Bootstrap samples.

    Raises:
        ConfigError: the lengths differ, or there are no problems.
    """
    reference, other = _aligned(reference_P, other_P)
    difference_P = other - reference
    return PairedDifference(
        estimate=mean_by_problem(difference_P, confidence=confidence, bounds=(-1.0, 1.0)),
        bootstrap=_bootstrap((difference_P,), np.mean, confidence, seed, num_resamples),
        p_value=sign_flip_p(difference_P, seed=seed),
    )


def token_ratio(
    reference_P: Sequence[float] | Floats,
    other_P: Sequence[float] | Floats,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> TokenRatio:
    """Compare what two arms spend on the same problems, `other` over `reference`.

    Raises:
        ConfigError: the lengths differ, there are no problems, or the reference spends nothing.
    """
    reference, other = _aligned(reference_P, other_P)
    if not reference.any():
        raise ConfigError("the reference spent no tokens, so there is no ratio to it")

    def ratio(other: Floats, reference: Floats, axis: int = -1) -> Floats:
        return np.mean(other, axis=axis) / np.mean(reference, axis=axis)  # type: ignore[no-any-return]  # numpy types a mean as Any

    # The jackknife leaves each problem out; a reference that spent on one alone has no ratio then.
    usable = np.count_nonzero(reference) > 1 and not _same_ratio(other, reference)
    interval = (
        _bootstrap((other, reference), ratio, confidence, seed, num_resamples) if usable else None
    )
    return TokenRatio(float(ratio(other, reference)), interval)


def sign_flip_p(
    difference_P: Sequence[float] | Floats, *, seed: int = 0, num_flips: int = NUM_FLIPS
) -> float:
    """Return the two-sided p of a mean difference under random signs.

    Exact where at most `MOST_EXACT_FLIPS` problems differ, else by `num_flips` random patterns.
    """
    values = np.asarray(difference_P, dtype=np.float64)
    values = values[values != 0.0]  # a zero stays a zero under either sign
    if values.size < 2:
        return 1.0  # of one difference, either sign is as likely
    exact = values.size <= MOST_EXACT_FLIPS
    result = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**MOST_EXACT_FLIPS if exact else num_flips,
        batch=max(1, 4_000_000 // values.size),  # 32 MB at a time
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given.

    The smallest is multiplied by their number, the next by one less, and so on; none falls below
    one before it, and none exceeds 1.
    """
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _aligned(
    reference_P: Sequence[float] | Floats, other_P: Sequence[float] | Floats
) -> tuple[Floats, Floats]:
    reference = np.asarray(reference_P, dtype=np.float64)
    other = np.asarray(other_P, dtype=np.float64)
    if reference.shape != other.shape:
        raise ConfigError(
            f"one arm has {reference.size} problems and the other {other.size}; "
            "a paired comparison needs the same ones"
        )
    if reference.size == 0:
        raise ConfigError("the arms have no problem in common, so there is nothing to compare")
    return reference, other


def _same_ratio(other: Floats, reference: Floats) -> bool:
    return bool(np.allclose(other * reference.sum(), reference * other.sum(), rtol=1e-12, atol=0))


def _bootstrap(
    samples: tuple[Floats, ...],
    statistic: Callable[..., Floats],
    confidence: float,
    seed: int,
    num_resamples: int,
) -> Interval | None:
    """Return the BCa interval over problems; None where all problems say the same."""
    if samples[0].size < 2 or (len(samples) == 1 and np.ptp(samples[0]) == 0.0):
        return None
    interval = stats.bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=num_resamples,
        batch=max(1, 4_000_000 // samples[0].size),
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


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
