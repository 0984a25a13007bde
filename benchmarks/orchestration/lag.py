"""How late an event loop is for what was due."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

INTERVAL_S = 0.01


@asynccontextmanager
async def lag_of_loop() -> AsyncIterator[list[float]]:
    """Fill a list with the loop's lag in seconds, one sample for every 10 ms."""
    samples: list[float] = []
    task = asyncio.create_task(_sample(samples))
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.wait({task})


async def _sample(samples: list[float]) -> None:
    while True:
        due = perf_counter() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        samples += unrolled(perf_counter() - due)


def unrolled(late_s: float) -> list[float]:
    """Return the lags of all samples that were due while the loop was blocked.

    Otherwise a loop that stands still for a second would count as one bad sample among a hundred
    good ones.

    >>> unrolled(0.025)
    [0.025, 0.015, 0.005]
    """
    missed = int(max(0.0, late_s) / INTERVAL_S)
    return [round(late_s - n * INTERVAL_S, 9) for n in range(missed + 1)]


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, interpolated between the two values around it; 0 of nothing.

    >>> percentile([1.0, 2.0, 3.0], 50)
    2.0
    """
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def summary_ms(samples: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and max in ms."""
    return {
        "p50": 1000 * percentile(samples, 50),
        "p99": 1000 * percentile(samples, 99),
        "max": 1000 * max(samples, default=0.0),
    }
