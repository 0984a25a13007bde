"""Runs compared: each arm by itself, and pairs of arms problem by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.eval.anchoring import Anchoring, anchoring
from pdr_graph.eval.attempts import ArmSamples, arms_of, common_problems, finished_by_both
from pdr_graph.eval.caveats import arm_caveats, pair_caveats
from pdr_graph.eval.decomposition import Decomposition, decompose
from pdr_graph.eval.matched import Matched, matched_vote
from pdr_graph.eval.pairs import (
    NUM_RESAMPLES,
    PairedDifference,
    TokenRatio,
    holm,
    paired_difference,
    token_ratio,
)
from pdr_graph.eval.records import Run
from pdr_graph.eval.stats import CONFIDENCE
from pdr_graph.eval.summary import ArmSummary, summarize

SCHEMA = 1
"""Version of the JSON form."""

SPENDS = ("b_seq", "b_total", "seconds")
"""Costs of which pairs of arms have a ratio."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare, and how."""

    pairs: tuple[tuple[str, str], ...] | None = None
    """(reference, arm); None compares every arm with the first."""
    ks: tuple[int, ...] | None = None
    """For pass@k and maj@k; None takes the most that every problem of every arm has."""
    confidence: float = CONFIDENCE
    seed: int = 0
    """Of the bootstrap and of random sign flips."""
    num_resamples: int = NUM_RESAMPLES


@dataclass(frozen=True, slots=True)
class Contrast:
    """One arm against a reference, on the problems that both tried."""

    reference: str
    arm: str
    num_problems: int
    accuracy: PairedDifference
    p_holm: float
    """Corrected for all contrasts of the comparison."""
    ratios: Mapping[str, TokenRatio]
    """By `SPENDS`, on the problems that both finished; empty where there is none."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "reference": self.reference,
            "arm": self.arm,
            "num_problems": self.num_problems,
            "difference": {**self.accuracy.to_json(), "p_holm": self.p_holm},
            "ratios": {name: each.to_json() for name, each in self.ratios.items()},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that `pdr-graph compare` says."""

    request: Request
    ks: tuple[int, ...]
    arms: list[ArmSummary]
    contrasts: list[Contrast]
    decompositions: list[Decomposition]
    matched: list[Matched]
    anchoring: list[Anchoring]
    caveats: list[str]
    """Sentences on what a reader must know before believing the numbers."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "schema": SCHEMA,
            "confidence": self.request.confidence,
            "seed": self.request.seed,
            "num_resamples": self.request.num_resamples,
            "arms": {each.name: each.to_json() for each in self.arms},
            "contrasts": [each.to_json() for each in self.contrasts],
            "outcomes": {each.arm: each.to_json() for each in self.decompositions},
            "matched_b_total": {each.arm: each.to_json() for each in self.matched},
            "anchoring": [each.to_json() for each in self.anchoring],
            "caveats": self.caveats,
        }


async def compare(runs: Sequence[Run], request: Request | None = None) -> Comparison:
    """Compare the arms of one or several runs, finished or not.

    Raises:
        ConfigError: there is nothing to compare, an arm of a pair is unknown, two arms have no
            problem in common, or a k is more than the samples of a problem.
    """
    request = request or Request()
    arms = arms_of(runs)
    by_name = {arm.name: arm for arm in arms}
    pairs = _pairs(request.pairs, by_name)
    ks = request.ks or (min(arm.fewest_samples for arm in arms),)
    _refuse_large(ks, arms)
    matched = [
        await matched_vote(
            arm,
            confidence=request.confidence,
            seed=request.seed,
            num_resamples=request.num_resamples,
        )
        for arm in arms
    ]
    return Comparison(
        request=request,
        ks=ks,
        arms=[await summarize(arm, ks, confidence=request.confidence) for arm in arms],
        contrasts=_contrasts(pairs, request),
        decompositions=[await decompose(arm) for arm in arms],
        matched=[each for each in matched if each is not None],
        anchoring=[
            row for arm in arms for row in await anchoring(arm, confidence=request.confidence)
        ],
        caveats=[*arm_caveats(arms), *pair_caveats(pairs)],
    )


def _pairs(
    asked: Sequence[tuple[str, str]] | None, arms: Mapping[str, ArmSamples]
) -> list[tuple[ArmSamples, ArmSamples]]:
    if asked is None:
        first, *others = arms.values()
        return [(first, other) for other in others]
    for pair in asked:
        for name in pair:
            if name not in arms:
                raise ConfigError(f"no arm is called {name!r}; there are: {', '.join(arms)}")
        if pair[0] == pair[1]:
            raise ConfigError(f"pair {pair[0]}:{pair[1]} compares an arm with itself; name two")
    return [(arms[reference], arms[arm]) for reference, arm in asked]


def _refuse_large(ks: Sequence[int], arms: Sequence[ArmSamples]) -> None:
    arm = min(arms, key=lambda each: each.fewest_samples)
    for k in ks:
        if not 1 <= k <= arm.fewest_samples:
            raise ConfigError(
                f"k {k} does not fit arm {arm.name!r}, which has a problem with "
                f"{arm.fewest_samples} samples; choose 1 to {arm.fewest_samples}"
            )


def _contrasts(pairs: Sequence[tuple[ArmSamples, ArmSamples]], request: Request) -> list[Contrast]:
    differences = []
    for reference, arm in pairs:
        problems = common_problems(reference, arm)
        if not problems:
            raise ConfigError(
                f"{reference.name!r} and {arm.name!r} have no problem in common; compare arms "
                "that were run on the same data"
            )
        differences.append(
            paired_difference(
                reference.accuracy_P(problems),
                arm.accuracy_P(problems),
                confidence=request.confidence,
                seed=request.seed,
                num_resamples=request.num_resamples,
            )
        )
    corrected = holm([each.p_value for each in differences])
    return [
        Contrast(
            reference=reference.name,
            arm=arm.name,
            num_problems=difference.estimate.num_problems,
            accuracy=difference,
            p_holm=p_holm,
            ratios=_ratios(reference, arm, request),
        )
        for (reference, arm), difference, p_holm in zip(pairs, differences, corrected, strict=True)
    ]


def _ratios(reference: ArmSamples, arm: ArmSamples, request: Request) -> dict[str, TokenRatio]:
    problems = finished_by_both(reference, arm)
    ratios = {}
    for what in SPENDS:
        spent_P = reference.cost_P(what, problems)
        if spent_P.any():
            ratios[what] = token_ratio(
                spent_P,
                arm.cost_P(what, problems),
                confidence=request.confidence,
                seed=request.seed,
                num_resamples=request.num_resamples,
            )
    return ratios
