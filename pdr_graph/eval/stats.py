"""Accuracy from repeated attempts: mean@n, pass@k, maj@k, and intervals that problems carry.

Attempts at one problem resemble one another, so the problem is the unit of every interval here: a
mean of problem means, with the spread of those. Each problem weighs the same, however many
attempts it has. With equally many of them this is the cluster-robust standard error of a
regression on a constant (CR1).

Sources: unbiased pass@k, arXiv 2107.03374, section 2.1; clustered standard errors for model
evaluations, arXiv 2411.00640.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pdr_graph.errors import ConfigError

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """Both ends of a confidence interval."""

    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Return it as plain data."""
        return {"low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems, and how far it can be trusted."""

    value: float
    interval: Interval | None
    """None where one problem alone was tried: nothing tells how much problems differ."""
    num_problems: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return it as plain data."""
        return {
            "value": self.value,
            "low": None if self.interval is None else self.interval.low,
            "high": None if self.interval is None else self.interval.high,
            "num_problems": self.num_problems,
        }


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


def mean_by_problem(
    values_P: Sequence[float] | Floats,
    *,
    confidence: float = CONFIDENCE,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Return the mean over problems with its t interval.

    Values that are all the same have no spread to make an interval of, and yet a problem that is
    not among them may differ. Where `bounds` are known, the interval is then the set of means that
    leave "no other value in P problems" a probability of at least 1 - confidence.

    Args:
        values_P: One value for each problem: the mean of its attempts, or a difference of two.
        confidence: Coverage that the interval aims at.
        bounds: The least and greatest value possible; the interval is cut to them.

    Raises:
        ConfigError: there are no values.
    """
    values = np.asarray(values_P, dtype=np.float64)
    if values.size == 0:
        raise ConfigError("no problem has a value, so there is nothing to average")
    mean = float(values.mean())
    if values.size == 1:
        return Estimate(mean, None, 1)
    if np.ptp(values) == 0.0 and bounds is not None:
        # At most this share of all problems can differ from every one that was tried.
        share = 1.0 - (1.0 - confidence) ** (1.0 / values.size)
        low, high = mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean)
        return Estimate(mean, Interval(low, high), values.size)
    half = float(stats.t.ppf((1.0 + confidence) / 2.0, values.size - 1) * stats.sem(values))
    low, high = mean - half, mean + half
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(mean, Interval(low, high), values.size)


def pass_at_k(num_attempts: int, num_correct: int, k: int) -> float:
    """Return the chance that k of the attempts, drawn without replacement, hold a correct one.

    This is 1 - C(n-c, k) / C(n, k): unbiased, unlike 1 - (1 - c/n)^k.

    Raises:
        ConfigError: there are fewer than k attempts.
    """
    _check_k(num_attempts, k)
    return 1.0 - math.comb(num_attempts - num_correct, k) / math.comb(num_attempts, k)


@lru_cache(maxsize=65_536)
def maj_at_k(votes: Votes, k: int) -> float:
    """Return the chance that the vote of k attempts, drawn without replacement, is correct.

    It is exact over all C(n, k) draws, and thereby unbiased for a vote of k fresh attempts. An
    attempt without an answer takes one of the k places and does not vote. Of answers with equally
    many votes one is drawn by lot, which the lowest index of a `vote` finish amounts to. If nobody
    votes, the answer is not correct.

    Raises:
        ConfigError: there are fewer than k attempts.
    """
    _check_k(votes.num_attempts, k)
    won = Fraction(0)
    for num_votes in range(1, min(votes.num_correct, k) + 1):
        ways = math.comb(votes.num_correct, num_votes)
        others = k - num_votes
        for num_tied, ways_by_size in enumerate(_beaten(votes.wrong, num_votes, others)):
            for size, wrong_ways in enumerate(ways_by_size):
                silent_ways = math.comb(votes.num_silent, others - size)
                won += Fraction(ways * wrong_ways * silent_ways, num_tied + 1)
    return float(won / math.comb(votes.num_attempts, k))


def _beaten(wrong: tuple[int, ...], num_votes: int, most: int) -> list[list[int]]:
    """Count draws of wrong answers none of which gets more than `num_votes`.

    Returns:
        `ways[t][s]`: draws of s attempts in which t wrong answers get exactly `num_votes`.
    """
    most_tied = most // num_votes
    ways = [[0] * (most + 1) for _ in range(most_tied + 1)]
    ways[0][0] = 1
    for count, how_many in Counter(wrong).items():
        # Answers given once are many, and all alike: they are drawn as one group.
        groups = [(1, how_many)] if count == 1 else [(count, 1)] * how_many
        for group in groups:
            ways = _with_group(ways, _draws(*group, num_votes, most))
    return ways


def _draws(count: int, how_many: int, num_votes: int, most: int) -> list[tuple[int, int, int]]:
    """Return (attempts drawn, answers tied, ways) for one answer, or for a group given once."""
    if count == 1:
        tied_each = int(num_votes == 1)
        return [(u, u * tied_each, math.comb(how_many, u)) for u in range(min(how_many, most) + 1)]
    return [
        (drawn, int(drawn == num_votes), math.comb(count, drawn))
        for drawn in range(min(count, num_votes, most) + 1)
    ]


def _with_group(ways: list[list[int]], draws: list[tuple[int, int, int]]) -> list[list[int]]:
    most_tied, most = len(ways) - 1, len(ways[0]) - 1
    result = [[0] * (most + 1) for _ in range(most_tied + 1)]
    for tied, row in enumerate(ways):
        for size, known in enumerate(row):
            if known:
                for drawn, more_tied, more_ways in draws:
                    if size + drawn <= most and tied + more_tied <= most_tied:
                        result[tied + more_tied][size + drawn] += known * more_ways
    return result


def _check_k(num_attempts: int, k: int) -> None:
    if not 1 <= k <= num_attempts:
        raise ConfigError(
            f"k {k} does not fit {num_attempts} attempts at a problem; "
            f"choose 1 to {num_attempts}, or take more samples"
        )
