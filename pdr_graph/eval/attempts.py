"""The attempts that runs have recorded, by arm and problem, and how they vote.

Correct attempts at one problem are one group, since each equals the gold answer. The others are
grouped by the equivalence of their answer kind, as the `vote` finish groups drafts.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pdr_graph.answers import AnswerKind, answer_kind, clusters
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import EvalRun, SampleRecord
from pdr_graph.eval.stats import Floats, Votes

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
                f"{run.folder} holds a sample of arm {sample['arm']!r}, which is not in its "
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
