"""Runs compared: each arm by itself, and pairs of arms problem by problem.

What a reader must know before believing a comparison, in sentences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.eval.attempts import (
    ArmSamples,
    arms_of,
    common_problems,
    finished_by_both,
    same_gold,
)
from pdr_graph.eval.decomposition import Anchoring, Decomposition, anchoring, decompose
from pdr_graph.eval.pairs import (
    NUM_RESAMPLES,
    Matched,
    PairedDifference,
    TokenRatio,
    holm,
    matched_vote,
    paired_difference,
    token_ratio,
)
from pdr_graph.eval.records import EvalRun
from pdr_graph.eval.stats import CONFIDENCE
from pdr_graph.eval.summary import ArmSummary, summarize


def arm_caveats(arms: Sequence[ArmSamples]) -> list[str]:
    """Return what there is to say of single arms, and of all together."""
    return [*(each for arm in arms for each in _of_arm(arm)), *_of_all(arms)]


def pair_caveats(pairs: Sequence[tuple[ArmSamples, ArmSamples]]) -> list[str]:
    """Return what there is to say of the arms of a contrast."""
    return [sentence for pair in pairs for sentence in _of_pair(*pair)]


def _of_arm(arm: ArmSamples) -> Iterator[str]:
    num_samples = len(arm.samples)
    if arm.num_owed:
        yield (
            f"{arm.name}: {arm.num_owed} of {num_samples + arm.num_owed} samples are owed, and "
            "what finishes early may be easier; the `pdr-graph eval` command that made the run "
            "goes on with it"
        )
    reasons = [sample["reason"] for sample in arm.samples]
    if failed := reasons.count("failed"):
        yield (
            f"{arm.name}: {failed} of {num_samples} samples failed; they count as not correct, "
            "and are left out of its costs"
        )
    if timeouts := reasons.count("timeout"):
        yield (
            f"{arm.name}: {timeouts} of {num_samples} answers were not judged in time, and count "
            "as not correct"
        )
    sizes = {len(group) for group in arm.by_problem.values()}
    if len(sizes) > 1:
        yield (
            f"{arm.name} has {min(sizes)} to {max(sizes)} samples a problem; each problem weighs "
            "the same"
        )
    if len(arm.by_problem) == 1:
        yield f"{arm.name} was tried on 1 problem, which gives no interval"
    if any(row["estimated"] for each in arm.finished for row in each["ledger"]["rows"]):
        yield f"{arm.name}: some of its token counts (~) rest on an estimate"


def _of_all(arms: Sequence[ArmSamples]) -> Iterator[str]:
    dependent = [arm.name for arm in arms if any(each["dependent"] for each in arm.samples)]
    if len(dependent) > 1:
        yield (
            f"{', '.join(dependent)} share the drafts of their first round: what differs "
            "between them came after it. Intervals over problems hold; their samples must not be "
            "pooled as independent ones"
        )


def _of_pair(reference: ArmSamples, arm: ArmSamples) -> Iterator[str]:
    names = f"{reference.name} and {arm.name}"
    ours, theirs = set(reference.by_problem), set(arm.by_problem)
    num_common = len(common_problems(reference, arm))
    alone = [
        f"{len(only)} that {name} alone tried"
        for only, name in ((ours - theirs, reference.name), (theirs - ours, arm.name))
        if only
    ]
    if alone:
        yield (
            f"{names} are compared on the {num_common} problems of both, without "
            f"{' and '.join(alone)}"
        )
    other_gold = sum(not same_gold(reference, arm, problem) for problem in ours & theirs)
    if other_gold:
        yield (
            f"{names}: {other_gold} problems have the same id and another right answer, so they "
            "are not the same problems, and are left out"
        )
    if reference.run is arm.run:
        return
    first, second = reference.run.header, arm.run.header
    if first["data"]["sha256"] != second["data"]["sha256"]:
        yield (
            f"{names} were run on different data ({first['data']['source']} and "
            f"{second['data']['source']}); problems are taken for the same by their id"
        )
    if first["model"] != second["model"]:
        yield (
            f"{names} ran on different models ({first['model']} and {second['model']}): what "
            "differs is model and method together"
        )
    changed = sorted(
        name
        for name in first["prompts_sha256"].keys() | second["prompts_sha256"].keys()
        if first["prompts_sha256"].get(name) != second["prompts_sha256"].get(name)
    )
    if changed:
        yield f"{names} ran on different prompts ({', '.join(changed)})"


SCHEMA = 1
"""Version of the JSON form."""

SPENDS = ("b_seq", "b_total", "seconds")
"""Costs of which pairs of arms have a ratio."""


@dataclass(frozen=True, slots=True)
class ComparisonRequest:
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

    request: ComparisonRequest
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


async def compare(runs: Sequence[EvalRun], request: ComparisonRequest | None = None) -> Comparison:
    """Compare the arms of one or several runs, finished or not.

    Raises:
        ConfigError: there is nothing to compare, an arm of a pair is unknown, two arms have no
            problem in common, or a k is more than the samples of a problem.
    """
    request = request or ComparisonRequest()
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


def _contrasts(
    pairs: Sequence[tuple[ArmSamples, ArmSamples]], request: ComparisonRequest
) -> list[Contrast]:
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


def _ratios(
    reference: ArmSamples, arm: ArmSamples, request: ComparisonRequest
) -> dict[str, TokenRatio]:
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
