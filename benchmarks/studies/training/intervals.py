"""Means and differences over seeds and problems, both of which could have been others.

Every seed answers the same problems, so a value has two clusters. Its variance is taken as that of
the seeds' means (over their number) plus that of the problems' means (over theirs), without taking
off what both count: conservative. The interval is Student's with one degree of freedom less than
there are seeds. Two-way clustering: Cameron, Gelbach and Miller 2011, doi 10.1198/jbes.2010.07136.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimated:
    """A mean over seeds and problems."""

    mean: float
    low: float
    high: float
    p_value: float
    """Two-sided, of the mean being 0; 1 where nothing varies or there is one seed."""
    by_seed: tuple[float, ...]


def estimated(values_S_P: NDArray[np.float64], confidence: float = CONFIDENCE) -> Estimated:
    """Estimate a mean; of one seed the interval is that over problems alone.

    Args:
        values_S_P: A value for each seed and problem.
        confidence: Coverage that the interval aims at.
    """
    seeds, problems = values_S_P.shape
    by_seed = values_S_P.mean(axis=1)
    mean = float(by_seed.mean())
    variance = float(values_S_P.mean(axis=0).var(ddof=1)) / problems
    freedom = problems - 1
    if seeds > 1:
        variance += float(by_seed.var(ddof=1)) / seeds
        freedom = seeds - 1
    error = math.sqrt(variance)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, freedom)) if error and seeds > 1 else 1.0
    return Estimated(mean, mean - half, mean + half, p_value, tuple(map(float, by_seed)))


def differences(
    first: Mapping[int, NDArray[np.float64]], second: Mapping[int, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Return second − first, `[S, P]`, for the seeds that both have."""
    seeds = sorted(first.keys() & second.keys())
    return np.stack([second[seed] - first[seed] for seed in seeds])
