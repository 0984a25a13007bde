"""The statistics of repeated attempts: means and their intervals, pass@k, maj@k, paired tests.

Attempts at one problem resemble one another, so the problem is the unit of every interval: a mean
of problem means, with the spread of those. Each problem has the same weight, however many attempts
it has. If all have equally many, this is the cluster-robust standard error of a regression on a
constant (CR1).

Problems differ far more than arms do, so two arms are compared problem by problem: a t interval of
the difference, a bootstrap over problems (BCa), and a sign-flip p, which is how often equal arms
would differ by as much. Several comparisons share one error rate by Holm's procedure.

Sources: unbiased pass@k, arXiv 2107.03374, section 2.1; clustered standard errors for model
evaluations, arXiv 2411.00640; Efron 1987 for BCa; Holm 1979; the last two as in scipy and
statsmodels.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
MOST_EXACT_FLIPS = 16
"""Up to so many problems that differ, all 2^P sign patterns are tried."""
NUM_FLIPS = 99_999
"""Random sign patterns if there are more; p is then at least 1/100,000."""
NUM_RESAMPLES = 9_999
"""Bootstrap samples."""


@dataclass(frozen=True, slots=True)
class IntervalOptions:
    """How intervals and tests are computed."""

    confidence: float = CONFIDENCE
    """Coverage that every interval aims at."""
    seed: int = 0
    """Of the bootstrap, and of random sign flips."""
    num_resamples: int = NUM_RESAMPLES


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems, and how far it can be trusted."""

    value: float
    low: float | None
    """Ends of the confidence interval. None for a single problem, which does not show how much
    problems differ."""
    high: float | None
    num_problems: int

    @property
    def interval(self) -> Interval | None:
        """Both ends, or neither."""
        return None if self.low is None or self.high is None else Interval(self.low, self.high)


# ------------------------------------------------------------------------------------ one arm


def mean_by_problem(
    values_P: Sequence[float] | Floats,
    *,
    confidence: float = CONFIDENCE,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Return the mean over problems with its t interval.

    If all values are the same, they have no spread, and yet another problem may differ. With
    `bounds`, the interval then holds every mean under which "no other value in P problems" has a
    probability of at least 1 - confidence.

    Args:
        values_P: One value for each of one or more problems: the mean of its attempts, or a
            difference of two.
        confidence: Coverage that the interval aims at.
        bounds: The least and greatest possible value; the interval is cut to them.
    """
    values = np.asarray(values_P, dtype=np.float64)
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean, None, None, 1)
    if np.ptp(values) == 0.0 and bounds is not None:
        # At most this share of all problems can differ from every one that was tried.
        share = 1.0 - (1.0 - confidence) ** (1.0 / values.size)
        low, high = mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean)
    else:
        from scipy import stats  # late: it takes a second to load

        half = float(stats.t.ppf((1.0 + confidence) / 2.0, values.size - 1) * stats.sem(values))
        low, high = mean - half, mean + half
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(mean, low, high, values.size)


def share_by_problem(values_P: Sequence[float] | Floats, confidence: float) -> Estimate:
    """Return the mean over problems of shares, which lie between 0 and 1."""
    return mean_by_problem(values_P, confidence=confidence, bounds=(0.0, 1.0))


@dataclass(frozen=True, slots=True)
class Votes:
    """How the attempts at one problem divide among answers."""

    num_correct: int
    wrong: tuple[int, ...] = ()
    """Attempts for each of the distinct wrong answers."""
    num_silent: int = 0
    """Attempts that state no answer, and so do not vote."""

    @property
    def num_attempts(self) -> int:
        """All attempts, silent ones included."""
        return self.num_correct + sum(self.wrong) + self.num_silent


def pass_at_k(votes: Votes, k: int) -> float:
    """Return the chance that k of the attempts, drawn without replacement, hold a correct one.

    This is 1 - C(n-c, k) / C(n, k): unbiased, unlike 1 - (1 - c/n)^k. There must be k attempts.
    """
    attempts = votes.num_attempts
    return 1.0 - math.comb(attempts - votes.num_correct, k) / math.comb(attempts, k)


@lru_cache(maxsize=65_536)
def maj_at_k(votes: Votes, k: int) -> float:
    """Return the chance that the vote of k attempts, drawn without replacement, is correct.

    There must be k attempts. It is exact over all C(n, k) draws, and so unbiased for a vote of k
    new attempts. A silent
    attempt takes one of the k places and does not vote. A tie is broken by lot; over random draws
    the `vote` finish, which takes the earliest, does the same. If nobody votes, the answer is not
    correct.
    """
    won = Fraction(0)
    for num_votes in range(1, min(votes.num_correct, k) + 1):
        ways = math.comb(votes.num_correct, num_votes)
        others = k - num_votes
        for (drawn, tied), wrong_ways in _not_above(votes.wrong, num_votes, others).items():
            silent_ways = math.comb(votes.num_silent, others - drawn)
            won += Fraction(ways * wrong_ways * silent_ways, tied + 1)
    return float(won / math.comb(votes.num_attempts, k))


def _not_above(wrong: tuple[int, ...], num_votes: int, most: int) -> Counter[tuple[int, int]]:
    """Count the draws of wrong attempts in which no answer gets more than `num_votes`.

    Returns:
        Number of draws, by (attempts drawn, answers with exactly `num_votes`).
    """
    ways = Counter({(0, 0): 1})
    for count, how_many in Counter(wrong).items():
        if count == 1:  # answers given once are many and alike, so they are drawn as one group
            groups = [
                [(u, u * (num_votes == 1), math.comb(how_many, u)) for u in range(how_many + 1)]
            ]
        else:
            group = [
                (u, int(u == num_votes), math.comb(count, u))
                for u in range(min(count, num_votes) + 1)
            ]
            groups = [group] * how_many
        for group in groups:
            before, ways = ways, Counter()
            for (drawn, tied), known in before.items():
                for more, more_tied, more_ways in group:
                    if drawn + more <= most:
                        ways[drawn + more, tied + more_tied] += known * more_ways
    return ways


# ------------------------------------------------------------------------------- pairs of arms


@dataclass(frozen=True, slots=True)
class PairedDifference(Estimate):
    """Mean over problems of how much more accurate one arm is than another, in [-1, 1]."""

    bootstrap: Interval | None
    """None if the difference is the same on every problem."""
    p_value: float
    """Two-sided sign-flip p, not corrected."""


@dataclass(frozen=True, slots=True)
class TokenRatio:
    """How many tokens one arm spends for each token of another, on the problems of both."""

    value: float
    """Ratio of the means; below 1 the arm is cheaper."""
    bootstrap: Interval | None
    """None if the ratio is the same on every problem."""


def paired_difference(
    reference_P: Floats, other_P: Floats, options: IntervalOptions
) -> PairedDifference:
    """Compare the mean accuracy of two arms on the same problems, `other` minus `reference`."""
    difference_P = other_P - reference_P
    mean = mean_by_problem(difference_P, confidence=options.confidence, bounds=(-1.0, 1.0))
    return PairedDifference(
        **asdict(mean),
        bootstrap=_bootstrap((difference_P,), np.mean, options),
        p_value=sign_flip_p(difference_P, seed=options.seed),
    )


def token_ratio(
    reference_P: Floats, other_P: Floats, options: IntervalOptions
) -> TokenRatio | None:
    """Compare what two arms spend on the same problems, `other` over `reference`.

    None if the reference spends nothing.
    """
    if not reference_P.any():
        return None

    def ratio(other: Floats, reference: Floats, axis: int = -1) -> Floats:
        return np.mean(other, axis=axis) / np.mean(reference, axis=axis)  # type: ignore[no-any-return]  # numpy types a mean as Any

    # BCa leaves out each problem in turn. A reference that spends on only one problem then has no
    # ratio.
    usable = np.count_nonzero(reference_P) > 1 and not np.allclose(
        other_P * reference_P.sum(), reference_P * other_P.sum(), rtol=1e-12, atol=0
    )
    return TokenRatio(
        float(ratio(other_P, reference_P)),
        _bootstrap((other_P, reference_P), ratio, options) if usable else None,
    )


def sign_flip_p(difference_P: Floats, *, seed: int = 0, num_flips: int = NUM_FLIPS) -> float:
    """Return the two-sided p of a mean difference under random signs.

    Exact if at most `MOST_EXACT_FLIPS` problems differ, else from `num_flips` random patterns.
    """
    values = difference_P[difference_P != 0.0]  # a zero stays zero under either sign
    if values.size < 2:
        return 1.0  # of one difference, either sign is as likely
    from scipy import stats

    exact = values.size <= MOST_EXACT_FLIPS
    result = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**MOST_EXACT_FLIPS if exact else num_flips,
        batch=_batch(values),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the order given.

    The smallest is multiplied by their number, the next by one less, and so on; none becomes
    smaller than the one before it, and none exceeds 1.
    """
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _bootstrap(
    samples: tuple[Floats, ...], statistic: Callable[..., Floats], options: IntervalOptions
) -> Interval | None:
    """Return the BCa interval over problems; None if all problems have the same value."""
    if samples[0].size < 2 or (len(samples) == 1 and np.ptp(samples[0]) == 0.0):
        return None
    from scipy import stats

    interval = stats.bootstrap(
        samples,
        statistic,
        paired=len(samples) > 1,
        vectorized=True,
        confidence_level=options.confidence,
        n_resamples=options.num_resamples,
        batch=_batch(samples[0]),
        method="BCa",
        rng=np.random.default_rng(options.seed),
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def _batch(values: Floats) -> int:
    """Return how many resamples are computed at once: 32 MB of them."""
    return max(1, 4_000_000 // values.size)
