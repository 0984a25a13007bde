"""A straight line through measured points."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """y = intercept + slope · x, by least squares."""

    slope: float
    intercept: float
    r_squared: float
    """Share of the variance of y that the line explains."""


def fit(x: Sequence[float], y: Sequence[float]) -> Line:
    """Fit a line; needs two different x.

    >>> fit([0, 1, 2], [1, 3, 5])
    Line(slope=2.0, intercept=1.0, r_squared=1.0)
    """
    line = statistics.linear_regression(x, y)
    rest = sum(
        (each - line.intercept - line.slope * at) ** 2 for at, each in zip(x, y, strict=True)
    )
    mean = statistics.fmean(y)
    total = sum((each - mean) ** 2 for each in y)
    # Points on a level line have no variance to explain.
    return Line(line.slope, line.intercept, 1 - rest / total if total else 1.0)
