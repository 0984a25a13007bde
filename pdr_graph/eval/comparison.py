"""Runs compared: each arm by itself, and pairs of arms problem by problem."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pdr_graph.errors import ConfigError, counted
from pdr_graph.eval.decomposition import Anchoring, Decomposition, anchoring, decompose
from pdr_graph.eval.records import EvalRun
from pdr_graph.eval.stats import (
    IntervalOptions,
    PairedDifference,
    TokenRatio,
    holm,
    paired_difference,
    token_ratio,
)
from pdr_graph.eval.summary import (
    ArmSamples,
    ArmSummary,
    MatchedVote,
    arms_of,
    common_problems,
    finished_by_both,
    matched_vote,
    same_gold,
    summarize,
)
from pdr_graph.validation import differences

SCHEMA = 1
"""Version of the JSON form."""

RATIOS = ("b_seq", "b_total", "seconds")
"""Costs that are compared between arms."""


@dataclass(frozen=True, slots=True)
class ComparisonRequest(IntervalOptions):
    """What to compare, and how intervals are computed."""

    pairs: tuple[tuple[str, str], ...] | None = None
    """(reference, arm); None compares every arm with the first."""
    ks: tuple[int, ...] | None = None
    """For pass@k and maj@k; None takes the largest k that every problem of every arm allows."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One arm against a reference, on the problems that both tried."""

    reference: str
    arm: str
    accuracy: PairedDifference
    p_holm: float
    """Corrected for all contrasts of the comparison."""
    ratios: Mapping[str, TokenRatio]
    """By `RATIOS`, on the problems that both finished; without those that the reference lacks."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "reference": self.reference,
            "arm": self.arm,
            "num_problems": self.accuracy.num_problems,
            "difference": {**asdict(self.accuracy), "p_holm": self.p_holm},
            "ratios": {what: asdict(ratio) for what, ratio in self.ratios.items()},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that `pdr-graph compare` shows."""

    request: ComparisonRequest
    ks: tuple[int, ...]
    arms: list[ArmSummary]
    contrasts: list[Contrast]
    decompositions: list[Decomposition]
    matched: list[MatchedVote]
    anchoring: list[Anchoring]
    caveats: list[str]
    """What a reader must know before believing the numbers, in sentences."""

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return it as plain data."""
        return {
            "schema": SCHEMA,
            "confidence": self.request.confidence,
            "seed": self.request.seed,
            "num_resamples": self.request.num_resamples,
            "arms": {each.pop("name"): each for each in map(asdict, self.arms)},
            "contrasts": [each.to_json() for each in self.contrasts],
            "outcomes": {each.arm: each.to_json() for each in self.decompositions},
            "matched_b_total": {each.arm: asdict(each) for each in self.matched},
            "anchoring": [
                {**asdict(each), "admitted": each.admitted.name.lower()} for each in self.anchoring
            ],
            "caveats": self.caveats,
        }


async def compare(runs: Sequence[EvalRun], request: ComparisonRequest | None = None) -> Comparison:
    """Compare the arms of one or several runs, finished or not.

    Raises:
        ConfigError: there is nothing to compare, an arm of a pair is unknown, two arms have no
            problem in common, or a problem has fewer samples than a k.
    """
    request = request or ComparisonRequest()
    arms = arms_of(runs)
    pairs = _pairs(request.pairs, {arm.name: arm for arm in arms})
    fewest = min(arms, key=lambda arm: arm.fewest_samples)
    ks = request.ks or (fewest.fewest_samples,)
    for k in ks:
        if not 1 <= k <= fewest.fewest_samples:
            raise ConfigError(
                f"k {k} does not fit arm {fewest.name!r}, which has a problem with "
                f"{fewest.fewest_samples} samples; choose 1 to {fewest.fewest_samples}"
            )
    matched = [await matched_vote(arm, request) for arm in arms]
    anchored = [await anchoring(arm, request.confidence) for arm in arms]
    return Comparison(
        request=request,
        ks=ks,
        arms=[await summarize(arm, ks, request.confidence) for arm in arms],
        contrasts=_contrasts(pairs, request),
        decompositions=[await decompose(arm) for arm in arms],
        matched=[each for each in matched if each is not None],
        anchoring=[row for rows in anchored for row in rows],
        caveats=list(_caveats(arms, pairs)),
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


def _contrasts(
    pairs: Sequence[tuple[ArmSamples, ArmSamples]], options: IntervalOptions
) -> list[Contrast]:
    found = []
    for reference, arm in pairs:
        problems = common_problems(reference, arm)
        if not problems:
            raise ConfigError(
                f"{reference.name!r} and {arm.name!r} have no problem in common; compare arms "
                "that were run on the same data"
            )
        found.append(
            paired_difference(reference.accuracy_P(problems), arm.accuracy_P(problems), options)
        )
    corrected = holm([each.p_value for each in found])
    return [
        Contrast(
            reference=reference.name,
            arm=arm.name,
            accuracy=difference,
            p_holm=p_holm,
            ratios=_ratios(reference, arm, options),
        )
        for (reference, arm), difference, p_holm in zip(pairs, found, corrected, strict=True)
    ]


def _ratios(
    reference: ArmSamples, arm: ArmSamples, options: IntervalOptions
) -> dict[str, TokenRatio]:
    problems = finished_by_both(reference, arm)
    ratios = {
        what: token_ratio(reference.cost_P(what, problems), arm.cost_P(what, problems), options)
        for what in RATIOS
    }
    return {what: ratio for what, ratio in ratios.items() if ratio is not None}


# ------------------------------------------------------------------------------------- caveats


def _caveats(
    arms: Sequence[ArmSamples], pairs: Sequence[tuple[ArmSamples, ArmSamples]]
) -> Iterator[str]:
    facts = {arm.name: _facts(arm) for arm in arms}
    for sentence in _facts(arms[0]):
        named = [f"{name}: {said[sentence]}" for name, said in facts.items() if said[sentence]]
        if named:
            yield sentence.format(arms=", ".join(named))
    if estimated := [arm.name for arm in arms if arm.estimated]:
        yield f"Some token counts (~) of {', '.join(estimated)} are estimates"
    dependent = [arm.name for arm in arms if any(each["dependent"] for each in arm.samples)]
    if len(dependent) > 1:
        yield (
            f"{', '.join(dependent)} share the drafts of their first round, so they differ only "
            "in what came after. Intervals over problems hold, but do not pool their samples as "
            "independent ones"
        )
    for pair in pairs:
        yield from _of_pair(*pair)


def _facts(arm: ArmSamples) -> dict[str, str]:
    """Return what each sentence says of an arm; empty if there is nothing to say."""
    num_samples = len(arm.samples)
    reasons = Counter(sample["reason"] for sample in arm.samples)
    failed, unjudged = (
        f"{reasons[each]} of {num_samples}" if reasons[each] else ""
        for each in ("failed", "timeout")
    )
    finished = f"{num_samples} of {num_samples + arm.num_owed}" if arm.num_owed else ""
    sizes = {len(group) for group in arm.by_problem.values()}
    uneven = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else ""
    single = "1 problem" if len(arm.by_problem) == 1 else ""
    return {
        "Not all samples are finished ({arms}), and those that finish first may be easier; the "
        "same `pdr-graph eval` command goes on with the rest": finished,
        "Some samples failed ({arms}); a failed sample counts as not correct, and costs leave it "
        "out": failed,
        "Some answers could not be judged in time ({arms}); they count as not correct": unjudged,
        "Problems differ in their number of samples ({arms}); each problem has the same "
        "weight": uneven,
        "A single problem gives no interval ({arms})": single,
    }


def _of_pair(reference: ArmSamples, arm: ArmSamples) -> Iterator[str]:
    names = f"{reference.name} and {arm.name}"
    ours, theirs = set(reference.by_problem), set(arm.by_problem)
    alone = [
        f"{len(only)} that only {name} tried"
        for only, name in ((ours - theirs, reference.name), (theirs - ours, arm.name))
        if only
    ]
    if alone:
        num_common = len(common_problems(reference, arm))
        yield (
            f"{names} are compared on the {counted(num_common, 'problem')} that both tried, "
            f"without {' and '.join(alone)}"
        )
    other_gold = sum(not same_gold(reference, arm, problem) for problem in ours & theirs)
    if other_gold:
        yield (
            f"{names}: the same id has another gold answer at {counted(other_gold, 'problem')}, so "
            "these are different problems and are left out"
        )
    if reference.run is arm.run:
        return
    first, second = reference.run.header, arm.run.header
    if first["data"]["sha256"] != second["data"]["sha256"]:
        yield (
            f"{names} were run on different data ({first['data']['source']} and "
            f"{second['data']['source']}); problems with the same id are taken to be the same"
        )
    if first["model"] != second["model"]:
        yield (
            f"{names} were run on different models ({first['model']} and {second['model']}), so "
            "they differ in model and method at once"
        )
    was, now = first["prompts_sha256"], second["prompts_sha256"]
    # A prompt that only one run knows comes from a later version.
    changed = differences(was, now, free=was.keys() ^ now.keys())
    if changed:
        yield f"{names} were run on different prompts ({', '.join(each.name for each in changed)})"
