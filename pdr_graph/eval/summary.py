"""One arm in numbers: its accuracy, its cost, and what a plain vote attains for that cost.

An arm's samples are gathered from the records of runs, by problem. Correct attempts at one problem
are one group, since each equals the gold answer. The others are grouped by the equivalence of their
answer kind, as the `vote` finish groups drafts.

What would the arm's B_total have bought without any distilling or refining? The drafts of its first
round read no workspace, so they are independent attempts; those of all its samples are pooled,
problem by problem. If the arm spends B_total tokens a sample on a problem, this pays for
m = B_total / (tokens of one such draft) drafts. The estimates are

- the vote: maj@m over all draws of m drafts from the pool;
- best-of-m: pass@m, the accuracy with a verifier that is never wrong, so an upper bound.

m is not a whole number: the value lies on the line between its two neighbours, which is what
drawing one or the other by lot attains at exactly this budget. If a pool holds fewer than m drafts,
all of them vote and the problem is counted as short: the vote then gets less than its budget.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from pdr_graph.answers import AnswerKind, answer_kind, clusters
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import NO_ANSWER, DraftRecord, EvalRun, SampleRecord
from pdr_graph.eval.stats import (
    Estimate,
    Floats,
    IntervalOptions,
    PairedDifference,
    Votes,
    maj_at_k,
    mean_by_problem,
    paired_difference,
    pass_at_k,
    share_by_problem,
)

Attempt = Mapping[str, object]
"""A sample's record or a draft's: `answer` (None if it states none) and `correct`."""


@dataclass(frozen=True, slots=True)
class ArmSamples:
    """The samples of one arm of one run."""

    name: str
    """The arm's name; `run/arm` if two runs have an arm of this name."""
    run: EvalRun
    config: PDRConfig
    by_problem: dict[str, list[SampleRecord]]
    """Samples by problem and in order of their number; no problem is without one."""
    num_owed: int
    """Samples that were asked for and are not finished."""

    @property
    def samples(self) -> list[SampleRecord]:
        """All samples."""
        return [sample for group in self.by_problem.values() for sample in group]

    @property
    def finished(self) -> list[SampleRecord]:
        """Samples that did not fail."""
        return [sample for sample in self.samples if ended(sample)]

    @property
    def kind(self) -> AnswerKind:
        """What counts as an answer."""
        return answer_kind(self.config.answer)

    @property
    def estimated(self) -> bool:
        """Whether any of its token counts is an estimate."""
        return any(row["estimated"] for each in self.finished for row in each["ledger"]["rows"])

    @property
    def fewest_samples(self) -> int:
        """Samples of the problem that has the fewest."""
        return min(map(len, self.by_problem.values()))

    def accuracy_P(self, problems: Sequence[str]) -> Floats:
        """Return the mean accuracy on each problem; a failed sample is not correct."""
        return _means([float(each["correct"]) for each in self.by_problem[p]] for p in problems)

    def cost_P(self, what: str, problems: Sequence[str]) -> Floats:
        """Return the mean cost of samples that did not fail, on each of `finished_problems`."""
        return _means(
            [cost(each, what) for each in self.by_problem[p] if ended(each)] for p in problems
        )

    def finished_problems(self) -> list[str]:
        """Return the problems with a sample that did not fail."""
        return [problem for problem, group in self.by_problem.items() if any(map(ended, group))]


def _means(groups: Iterable[Sequence[float]]) -> Floats:
    return np.asarray([np.mean(group) for group in groups], dtype=np.float64)


def ended(sample: SampleRecord) -> bool:
    """Tell whether a sample's run came to its end; of a failed one the full cost is unknown."""
    return sample["reason"] != "failed"


def cost(sample: SampleRecord, what: str) -> float:
    """Return `seconds`, or a sum of the ledger, for example `b_seq`."""
    return float(sample["seconds"] if what == "seconds" else sample["ledger"][what])


def arms_of(runs: Sequence[EvalRun]) -> list[ArmSamples]:
    """Return the arms that have samples, in the order of their runs.

    Raises:
        ConfigError: no arm has a sample, a run holds samples of an unknown arm, or a run was named
            twice.
    """
    folders = [run.folder.resolve() for run in runs]
    if twice := next((each for each in folders if folders.count(each) > 1), None):
        raise ConfigError(f"run {str(twice)!r} is named twice; name each run once")
    arm_names = [name for run in runs for name in run.header["arms"]]
    run_names = [folder.name for folder in folders]
    arms = []
    for run, folder in zip(runs, folders, strict=True):
        label = folder.name if run_names.count(folder.name) == 1 else str(run.folder)
        grouped = _by_arm_and_problem(run)
        for name, by_problem in grouped.items():
            shown = f"{label}/{name}" if arm_names.count(name) > 1 else name
            asked = run.header["samples"] * run.header["data"]["num_problems"]
            owed = max(0, asked - sum(map(len, by_problem.values())))
            if by_problem:
                arms.append(ArmSamples(shown, run, run.config(name), by_problem, owed))
    if not arms:
        where = ", ".join(str(run.folder) for run in runs)
        raise ConfigError(
            f"no sample is finished in {where}; the same `pdr-graph eval` command goes on with the "
            "run"
        )
    return arms


def _by_arm_and_problem(run: EvalRun) -> dict[str, dict[str, list[SampleRecord]]]:
    grouped: dict[str, dict[str, list[SampleRecord]]] = {name: {} for name in run.header["arms"]}
    for sample in sorted(run.samples, key=lambda each: (each["problem_id"], each["sample"])):
        if sample["arm"] not in grouped:
            raise ConfigError(
                f"{str(run.folder)!r} holds a sample of arm {sample['arm']!r}, which is not in its "
                f"header; known: {', '.join(grouped)}"
            )
        grouped[sample["arm"]].setdefault(sample["problem_id"], []).append(sample)
    return grouped


def common_problems(first: ArmSamples, second: ArmSamples) -> list[str]:
    """Return the problems that both arms have tried, in the order of the first."""
    return [
        problem
        for problem in first.by_problem
        if problem in second.by_problem and same_gold(first, second, problem)
    ]


def finished_by_both(first: ArmSamples, second: ArmSamples) -> list[str]:
    """Return the common problems on which each arm has a sample that did not fail."""
    done = set(first.finished_problems()) & set(second.finished_problems())
    return [problem for problem in common_problems(first, second) if problem in done]


def same_gold(first: ArmSamples, second: ArmSamples, problem: str) -> bool:
    """Tell whether a problem's id has the same gold answer in both arms."""
    return first.by_problem[problem][0]["gold"] == second.by_problem[problem][0]["gold"]


async def count_votes(kind: AnswerKind, attempts: Sequence[Attempt]) -> Votes:
    """Count the votes of attempts at one problem."""
    groups = await _groups(kind, attempts)
    correct = [len(group) for group in groups if attempts[group[0]]["correct"]]
    wrong = [len(group) for group in groups if not attempts[group[0]]["correct"]]
    num_voting = sum(map(len, groups))
    return Votes(sum(correct), tuple(wrong), len(attempts) - num_voting)


async def majority_is_correct(kind: AnswerKind, attempts: Sequence[Attempt]) -> bool:
    """Tell whether the most frequent answer is right; a tie goes to the earliest attempt."""
    groups = await _groups(kind, attempts)
    return bool(groups) and bool(attempts[groups[0][0]]["correct"])


async def _groups(kind: AnswerKind, attempts: Sequence[Attempt]) -> list[list[int]]:
    """Group positions by answer, the largest group first, then the earliest."""
    correct = [index for index, each in enumerate(attempts) if each["correct"]]
    others = [
        str(each["answer"]) if each["answer"] is not None and not each["correct"] else None
        for each in attempts
    ]
    groups = [*await clusters(kind, others), *([correct] if correct else [])]
    return sorted(groups, key=lambda group: (-len(group), group[0]))


COSTS = ("b_seq", "b_total", "b_seq_nominal", "b_total_nominal", "seconds")
"""Sums of a ledger in model tokens, the nominal ones of allotted completion tokens; and seconds."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How a cost spreads over the samples of an arm."""

    mean: Estimate
    """Mean over problems of the mean over their samples."""
    p95: float
    """95th percentile over samples."""


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm in numbers."""

    name: str
    num_problems: int
    num_samples: int
    num_owed: int
    """Samples that were asked for and are not finished."""
    accuracy: Estimate
    """mean@n; failed samples are not correct."""
    pass_at_k: Mapping[int, Estimate]
    """By k."""
    maj_at_k: Mapping[int, Estimate]
    """By k; empty if answers cannot be compared."""
    no_answer_rate: float
    """Share of samples with a solution that states no answer."""
    truncation_rate: float
    """Share of samples whose solution the token limit cut, with or without an answer."""
    failure_rate: float
    """Share of samples without a solution."""
    reasons: Mapping[str, int]
    """Number of samples by `records.Reason`."""
    cost: Mapping[str, Spread]
    """By `COSTS`; empty if all samples failed."""
    estimated: bool
    """Whether any token count is an estimate."""


async def summarize(arm: ArmSamples, ks: Sequence[int], confidence: float) -> ArmSummary:
    """Summarize one arm.

    Args:
        arm: Its samples.
        ks: The k of pass@k and maj@k; every problem has so many samples.
        confidence: Coverage that every interval aims at.
    """
    samples, groups = arm.samples, arm.by_problem.values()
    votes = [await count_votes(arm.kind, group) for group in groups]

    def share(attained: Callable[[Votes, int], float], k: int) -> Estimate:
        return share_by_problem([attained(each, k) for each in votes], confidence)

    return ArmSummary(
        name=arm.name,
        num_problems=len(groups),
        num_samples=len(samples),
        num_owed=arm.num_owed,
        accuracy=share_by_problem(arm.accuracy_P(list(arm.by_problem)), confidence),
        pass_at_k={k: share(pass_at_k, k) for k in ks},
        maj_at_k={k: share(maj_at_k, k) for k in ks if arm.kind.has_short_answer},
        no_answer_rate=fmean(sample["reason"] in NO_ANSWER for sample in samples),
        truncation_rate=fmean(sample["truncated"] for sample in samples),
        failure_rate=fmean(sample["reason"] == "failed" for sample in samples),
        reasons=dict(Counter(sample["reason"] for sample in samples)),
        cost=_costs(arm, confidence),
        estimated=arm.estimated,
    )


def _costs(arm: ArmSamples, confidence: float) -> dict[str, Spread]:
    problems = arm.finished_problems()
    if not problems:
        return {}
    return {
        name: Spread(
            mean_by_problem(arm.cost_P(name, problems), confidence=confidence),
            float(np.quantile([cost(sample, name) for sample in arm.finished], 0.95)),
        )
        for name in COSTS
    }


@dataclass(frozen=True, slots=True)
class MatchedVote:
    """An arm beside a plain vote of its first drafts that may spend as much."""

    arm: str
    num_problems: int
    num_drafts: float
    """Drafts that the budget pays for: m, mean over problems."""
    num_short: int
    """Problems whose pool holds fewer than m drafts."""
    accuracy: Estimate
    """The arm's own, on these problems."""
    vote: Estimate
    best: Estimate
    """Best-of-m with a perfect verifier."""
    over_vote: PairedDifference
    """The arm minus the vote."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """One problem's first drafts, and how many of them its budget pays for."""

    drafts: list[DraftRecord]
    affordable: float

    @property
    def num_drawn(self) -> float:
        return min(max(1.0, self.affordable), float(len(self.drafts)))


async def matched_vote(arm: ArmSamples, options: IntervalOptions) -> MatchedVote | None:
    """Return what a vote of an arm's first drafts attains for the arm's B_total.

    None if the arm has no drafts, or no answers to vote on.
    """
    if not arm.kind.has_short_answer:
        return None
    pools = {problem: pool for problem, group in arm.by_problem.items() if (pool := _pool(group))}
    if not pools:
        return None
    drawn = [(await count_votes(arm.kind, pool.drafts), pool.num_drawn) for pool in pools.values()]
    vote_P = np.array([_between(maj_at_k, *each) for each in drawn])
    best_P = np.array([_between(pass_at_k, *each) for each in drawn])
    own_P = arm.accuracy_P(list(pools))
    return MatchedVote(
        arm=arm.name,
        num_problems=len(pools),
        num_drafts=float(np.mean([pool.affordable for pool in pools.values()])),
        num_short=sum(pool.affordable > len(pool.drafts) for pool in pools.values()),
        accuracy=share_by_problem(own_P, options.confidence),
        vote=share_by_problem(vote_P, options.confidence),
        best=share_by_problem(best_P, options.confidence),
        over_vote=paired_difference(vote_P, own_P, options),
    )


def _pool(group: list[SampleRecord]) -> _Pool | None:
    """Gather one problem's first-round drafts; None if it has none of known cost."""
    samples = [sample for sample in group if ended(sample)]
    # A draft that was cut because the quorum was complete had no chance to answer.
    drafts = [
        draft
        for sample in samples
        for draft in sample["drafts"]
        if draft["round"] == 1 and draft["error"] != "cut"
    ]
    spent = sum(
        row["prompt_tokens"] + row["completion_tokens"]
        for sample in samples
        for row in sample["ledger"]["rows"]
        if row["round"] == 1 and row["node"] == "drafter"
    )
    if not drafts or not spent:
        return None
    b_total = float(np.mean([sample["ledger"]["b_total"] for sample in samples]))
    return _Pool(drafts, b_total * len(drafts) / spent)


def _between(attained: Callable[[Votes, int], float], votes: Votes, num_drawn: float) -> float:
    """Return the value at a fractional number of drafts, on the line between its neighbours."""
    low = math.floor(num_drawn)
    share = num_drawn - low
    value = (1.0 - share) * attained(votes, low)
    return value + share * attained(votes, low + 1) if share else value
