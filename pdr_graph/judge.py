"""What a draft shows besides its answer, and a judge that was trained on it: is the draft right?

Log-probabilities are free where the server tells them. `logprob_tail` and `logprob_window` are
DeepConf's (arXiv 2508.15260), here of the tokens that were drawn. All are natural logarithms, at
most 0; a likelier draft has a higher one.

`pdr-graph judge fit` makes one of the records of evaluations (`eval/judge_fit.py`). The file is
JSON and holds numbers alone, so that reading one runs nothing. It is a logistic regression over
what is known of a draft besides its answer, as in CISC (arXiv 2502.06233) and LiLaVe (2504.16760).
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from pdr_graph.errors import ConfigError
from pdr_graph.types import Draft
from pdr_graph.validation import Fault

TAIL = 40
"""Tokens at the end of a draft that state its answer."""
WINDOW = 20
"""Tokens of the windows of which the least likely one counts."""

LOGPROBS = ("logprob", "logprob_tail", "logprob_window")
"""Signals that are made of log-probabilities."""


def logprob_signals(logprobs: Sequence[float]) -> dict[str, float]:
    """Return the mean log-probability of all tokens, of the last ones, and of the worst window.

    Args:
        logprobs: Of each drawn token, in order. Those that are no finite number are left out.

    Returns:
        Signals by the names of `LOGPROBS`; empty if no token is left.
    """
    known = [min(each, 0.0) for each in logprobs if math.isfinite(each)]
    if not known:
        return {}
    tail = known[-TAIL:]
    return {
        "logprob": math.fsum(known) / len(known),
        "logprob_tail": math.fsum(tail) / len(tail),
        "logprob_window": _lowest_window(known),
    }


def _lowest_window(logprobs: Sequence[float]) -> float:
    size = min(WINDOW, len(logprobs))
    window = math.fsum(logprobs[:size])
    lowest = window
    for gone, new in zip(logprobs, logprobs[size:], strict=False):
        window += new - gone
        lowest = min(lowest, window)
    return lowest / size


FEATURES = (*LOGPROBS, "log_tokens", "truncated")
"""What a judge may look at: the signals above, the natural logarithm of the tokens of the
draft's call, and 1 where it was cut."""


def features_of(draft: Draft) -> dict[str, float] | None:
    """Return the features of a draft; None where its server tells no log-probabilities."""
    signals = draft.get("signals")
    if not signals:
        return None
    return {
        **signals,
        "log_tokens": math.log(max(1, draft["tokens"])),
        "truncated": float(draft["truncated"]),
    }


class DraftJudge(BaseModel):
    """Weighs the drafts of one model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal["pdr-graph judge"] = "pdr-graph judge"
    version: Literal[1] = 1
    model: str
    """The model whose drafts it was fitted on; those of another are refused."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """First 16 hex digits of each prompt's sha256, by name, as in the records."""
    data: tuple[str, ...] = ()
    """sha256 of each file of problems."""
    created: str = ""
    """ISO 8601, in UTC."""
    features: tuple[str, ...]
    """Names of `FEATURES`, in the order of the numbers below."""
    means: tuple[FiniteFloat, ...]
    scales: tuple[FiniteFloat, ...]
    """Standard deviations of the features, none of them 0."""
    weights: tuple[FiniteFloat, ...]
    """Of the features less their means, in units of their scales."""
    bias: FiniteFloat
    report: dict[str, Any] = Field(default_factory=dict)  # Any: plain JSON data
    """What the fit has found, for readers."""

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Self:
        lengths = {len(each) for each in (self.features, self.means, self.scales, self.weights)}
        if len(lengths) != 1:
            raise ValueError("features, means, scales and weights differ in length")
        if unknown := set(self.features) - set(FEATURES):
            raise ValueError(f"unknown feature {min(unknown)!r}; known: {', '.join(FEATURES)}")
        if 0.0 in self.scales:
            raise ValueError("a scale is 0")
        return self

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a judge.

        Raises:
            ConfigError: the file cannot be read, or is no judge.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise ConfigError(f"judge {str(file)!r} cannot be read: {error}") from None
        except ValidationError as error:
            reason = Fault.of(error).sentence(model=cls)
            raise ConfigError(
                f"{str(file)!r} is no judge: {reason}; make one with pdr-graph judge fit"
            ) from None

    def save(self, file: Path) -> None:
        """Write the judge.

        Raises:
            ConfigError: the file cannot be written.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.model_dump_json(indent=1) + "\n", "utf-8")
        except OSError as error:
            raise ConfigError(f"judge {str(file)!r} cannot be written: {error}") from None

    @property
    def digest(self) -> str:
        """First 16 hex digits of the sha256 of what it says; runs record it."""
        said = self.model_dump_json(exclude={"report", "created"})
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def check(self, model: str) -> None:
        """Refuse a model on whose drafts the judge was not fitted.

        Raises:
            ConfigError: it is another model.
        """
        if model != self.model:
            raise ConfigError(
                f"the judge was fitted on drafts of {self.model!r}, and this run asks {model!r}; "
                "fit one on its drafts with pdr-graph judge fit"
            )

    def weigh(self, draft: Draft) -> float | None:
        """Return how likely the draft is to be right, 0 to 1; None where a feature is unknown."""
        known = features_of(draft)
        if known is None or not set(self.features) <= known.keys():
            return None
        parts = zip(self.features, self.means, self.scales, self.weights, strict=True)
        logit = self.bias + math.fsum(
            weight * (known[name] - mean) / scale for name, mean, scale, weight in parts
        )
        return 1.0 / (1.0 + math.exp(-min(max(logit, -700.0), 700.0)))
