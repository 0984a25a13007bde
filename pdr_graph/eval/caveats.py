"""What a reader must know before believing a comparison, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pdr_graph.eval.attempts import ArmSamples, common_problems, same_gold


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
