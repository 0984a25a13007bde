"""The guard against drift: the policy that draws tokens is the model that is trained.

After each push some fresh rows are scored again by the trainer and held against the
log-probabilities that were recorded when they were drawn. Weights that did not arrive, arrived in
part, or belong to another model give no error anywhere else: the server answers every call, and
training goes on with ratios that mean nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pdr_graph.errors import ConfigError, PDRError
from pdr_graph.train.batch import TokenSample

Precision = Literal["fp32", "bf16"]

LARGEST_FP32 = 1e-3
"""Between two right implementations in float32 it is below 1e-5."""
MEAN_BF16 = 0.05
"""In bfloat16 single tokens differ by tenths; their mean is what tells."""


@dataclass(frozen=True, slots=True)
class Drift:
    """By how much log-probabilities differ between the policy that drew and the trainer."""

    largest: float
    mean: float
    """Of absolute values."""
    tokens: int


class DriftError(PDRError, RuntimeError):
    """The policy that draws tokens is not the model that is trained."""

    def __init__(self, drift: Drift, limit: str, policy_version: int, cause: str) -> None:
        self.drift = drift
        self.policy_version = policy_version
        super().__init__(
            f"the policy that drew the rollouts is not the model that is trained: after "
            f"{policy_version} updates their log-probabilities differ by up to "
            f"{drift.largest:.3g} (mean {drift.mean:.3g}) over {drift.tokens} tokens, and "
            f"{limit} is allowed; {cause}"
        )


@dataclass(frozen=True, slots=True)
class DriftGuard:
    """What is compared, and how much may differ."""

    largest: float | None = LARGEST_FP32
    """Bound on a single token's difference, in nats; None does not bound it."""
    mean: float | None = None
    """Bound on the mean of absolute differences; None does not bound it."""
    rows: int = 4
    """Rows on each rank that are scored again."""
    every: int = 1
    """Steps between checks."""

    def __post_init__(self) -> None:
        """Refuse a guard that guards nothing.

        Raises:
            ConfigError: it has no bound, no rows or no steps.
        """
        if self.largest is None and self.mean is None:
            raise ConfigError("a drift guard without a bound guards nothing; set one of the two")
        if self.rows < 1 or self.every < 1:
            raise ConfigError(
                f"a drift guard of {self.rows} rows every {self.every} steps guards nothing; "
                "use 1 or more of both"
            )

    @classmethod
    def at(
        cls, precision: Precision, *, rows: int = 4, every: int = 1, tolerance: float | None = None
    ) -> "DriftGuard":
        """Return the guard that fits a precision; `tolerance` None is the usual bound."""
        if precision == "fp32":
            return cls(tolerance or LARGEST_FP32, None, rows, every)
        return cls(None, tolerance or MEAN_BF16, rows, every)

    def is_due(self, step: int) -> bool:
        """Return whether a step is one that is checked."""
        return step % self.every == 0

    def chosen(self, samples: Sequence[TokenSample], policy_version: int) -> list[TokenSample]:
        """Return the rows to score again, spread over all that the newest policy drew.

        Always `rows` of them, fillers where there are too few: every rank does the same work.
        """
        fresh = [
            sample
            for sample in samples
            if sample.row is not None and sample.row.call.policy_version == policy_version
        ]
        taken = min(self.rows, len(fresh))
        spread = [fresh[index * len(fresh) // taken] for index in range(taken)]
        return [*spread, *[TokenSample(None)] * (self.rows - taken)]

    def judge(self, drift: Drift, policy_version: int, cause: str) -> None:
        """Raise if the drift is above a bound.

        Raises:
            DriftError: it is, or a value is not finite; the sentence has the figures and `cause`.
        """
        # Negated, so that a NaN is no pass.
        if self.largest is not None and not drift.largest <= self.largest:
            raise DriftError(drift, f"{self.largest:g}", policy_version, cause)
        if self.mean is not None and not drift.mean <= self.mean:
            raise DriftError(drift, f"a mean of {self.mean:g}", policy_version, cause)


def drift_between(logprobs_B_T: Tensor, behaviour_B_T: Tensor, mask_B_T: Tensor) -> Drift:
    """Return the drift of some rows; without a token there is none."""
    gaps = (logprobs_B_T - behaviour_B_T)[mask_B_T].abs()
    if not gaps.numel():
        return Drift(0.0, 0.0, 0)
    return Drift(float(gaps.max()), float(gaps.mean()), gaps.numel())


def over_ranks(drifts: Sequence[Drift]) -> Drift:
    """Return the drift of all ranks' rows together."""
    tokens = sum(drift.tokens for drift in drifts)
    if not tokens:
        return Drift(0.0, 0.0, 0)
    # Of NaN and a number either may be Python's maximum.
    largest = max((d.largest for d in drifts), key=lambda each: (math.isnan(each), each))
    mean = sum(drift.mean * drift.tokens for drift in drifts) / tokens
    return Drift(largest, mean, tokens)
