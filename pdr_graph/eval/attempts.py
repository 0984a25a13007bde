"""The arms of one or several runs, their samples gathered by problem.

Who votes for what: attempts at one problem, grouped by answer.

Attempts that were found correct are one group, since each equals the gold answer; the others are
grouped by the equivalence of their answer kind, as the `vote` finish groups drafts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdr_graph.answers import AnswerKind, answer_kind, clusters
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import EvalRun, SampleRecord
from pdr_graph.eval.stats import Floats, Votes


@dataclass(frozen=True, slots=True)
class ArmSamples:
    """One arm of one run."""

    name: str
    """As the comparison calls it: the arm's name, after its run's where two runs have it."""
    run: EvalRun
    config: PDRConfig
    by_problem: dict[str, list[SampleRecord]]
    """Samples of each problem that has any, in order of their number."""
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
    def fewest_samples(self) -> int:
        """Samples of the problem that has the fewest."""
        return min(map(len, self.by_problem.values()))

    def accuracy_P(self, problems: Sequence[str]) -> Floats:
        """Return mean accuracy on each of some problems; a failed sample is not correct."""
        return _floats(
            np.mean([sample["correct"] for sample in self.by_problem[problem]])
            for problem in problems
        )

    def cost_P(self, what: str, problems: Sequence[str]) -> Floats:
        """Return the mean cost of finished samples on each of some `finished_problems`."""
        return _floats(
            np.mean([cost(sample, what) for sample in self.by_problem[problem] if ended(sample)])
            for problem in problems
        )

    def finished_problems(self) -> list[str]:
        """Return the problems that have a sample which did not fail."""
        return [problem for problem, group in self.by_problem.items() if any(map(ended, group))]


def ended(sample: SampleRecord) -> bool:
    """Tell whether a sample's run came to its end; what a failed one spent is not all known."""
    return sample["reason"] != "failed"


def cost(sample: SampleRecord, what: str) -> float:
    """Return `seconds`, or a sum of the ledger: `b_seq` for one."""
    return float(sample["seconds"] if what == "seconds" else sample["ledger"][what])


def arms_of(runs: Sequence[EvalRun]) -> list[ArmSamples]:
    """Return the arms that have samples, in the order of their runs.

    Raises:
        ConfigError: no arm has a sample, a sample is of an arm that its run does not know, or a
            run was named twice.
    """
    folders = [run.folder.resolve() for run in runs]
    if twice := next((each for each in folders if folders.count(each) > 1), None):
        raise ConfigError(f"run {str(twice)!r} is named twice; name each run once")
    names = [name for run in runs for name in run.header["arms"]]
    labels = _labels(runs)
    arms = []
    for run, label in zip(runs, labels, strict=True):
        _refuse_strangers(run)
        for name in run.header["arms"]:
            shown = f"{label}/{name}" if names.count(name) > 1 else name
            arm = _arm(run, name, shown)
            if arm.by_problem:
                arms.append(arm)
    if not arms:
        where = ", ".join(str(run.folder) for run in runs)
        raise ConfigError(
            f"no sample is finished in {where}; the `pdr-graph eval` command that made the run "
            "goes on with it"
        )
    return arms


def common_problems(first: ArmSamples, second: ArmSamples) -> list[str]:
    """Return the problems that both arms have tried, in the order of the first."""
    return [
        problem
        for problem in first.by_problem
        if problem in second.by_problem and same_gold(first, second, problem)
    ]


def finished_by_both(first: ArmSamples, second: ArmSamples) -> list[str]:
    """Return the common problems of which both have a sample that did not fail."""
    done = set(first.finished_problems()) & set(second.finished_problems())
    return [problem for problem in common_problems(first, second) if problem in done]


def same_gold(first: ArmSamples, second: ArmSamples, problem: str) -> bool:
    """Tell whether two arms were asked the same under a problem's id."""
    return first.by_problem[problem][0]["gold"] == second.by_problem[problem][0]["gold"]


def _arm(run: EvalRun, name: str, shown: str) -> ArmSamples:
    by_problem: dict[str, list[SampleRecord]] = {}
    for sample in sorted(
        (each for each in run.samples if each["arm"] == name),
        key=lambda each: (each["problem_id"], each["sample"]),
    ):
        by_problem.setdefault(sample["problem_id"], []).append(sample)
    asked = run.header["samples"] * run.header["data"]["num_problems"]
    owed = max(0, asked - sum(map(len, by_problem.values())))
    return ArmSamples(shown, run, run.config(name), by_problem, owed)


def _labels(runs: Sequence[EvalRun]) -> list[str]:
    """Return a short name of each run: its folder's, or its path where two are called the same."""
    names = [run.folder.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, runs, strict=True)
    ]


def _refuse_strangers(run: EvalRun) -> None:
    for sample in run.samples:
        if sample["arm"] not in run.header["arms"]:
            raise ConfigError(
                f"{run.folder} holds a sample of arm {sample['arm']!r}, which its header does not "
                f"know; known: {', '.join(run.header['arms'])}"
            )


def _floats(values: Iterable[np.floating[Any]]) -> Floats:  # Any: of any precision
    return np.asarray(list(values), dtype=np.float64)


Attempt = Mapping[str, object]
"""Has `answer` (None if none is stated) and `correct`; a sample's record, or a draft's."""


async def count_votes(kind: AnswerKind, attempts: Sequence[Attempt]) -> Votes:
    """Count the votes of attempts at one problem."""
    groups = await _groups(kind, attempts)
    correct = [group for group in groups if attempts[group[0]]["correct"]]
    wrong = tuple(len(group) for group in groups if not attempts[group[0]]["correct"])
    num_voting = sum(map(len, groups))
    return Votes(
        num_correct=len(correct[0]) if correct else 0,
        wrong=wrong,
        num_silent=len(attempts) - num_voting,
    )


async def majority_is_correct(kind: AnswerKind, attempts: Sequence[Attempt]) -> bool:
    """Tell whether the answer of most attempts is right; a tie goes to the earlier attempt."""
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
