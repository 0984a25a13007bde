r"""The drafts that an adapter learns to judge: read, divided by problem, balanced, and measured.

They come from runs of `pdr-graph eval` whose traces were kept, or from a file of JSON lines::

    {"problem_id": "q7", "problem": "What is 6 x 7?", "solution": "… \\boxed{42}", "correct": true}

Problems are divided, never drafts. Of the problems that are not judged, some decide when to stop,
and how margins become probabilities (Platt's sigmoid). Right and wrong drafts of a problem are
learnt in equal numbers, since a trait that all drafts of a problem share cannot decide between
them.
"""

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.linear_model import LogisticRegression

from pdr_graph.answers import answer_kind, clusters
from pdr_graph.errors import ConfigError
from pdr_graph.eval.judge_fit import Ballot, ballots_of, one_model
from pdr_graph.eval.records import read_run
from pdr_graph.files import json_object
from pdr_graph.prompts import Prompts
from pdr_graph.types import Draft

REMEDY = "a line has problem_id, problem, solution and correct"
_HELD, _STOPPING = 0.25, 0.2
"""Share of the problems that are held out, and of the others those that tell when to stop."""


@dataclass(frozen=True, slots=True)
class CheckedDraft:
    """A draft whose answer was compared with the gold one."""

    problem_id: str
    problem: str
    """The prompt of the draft, before the chat template."""
    solution: str
    correct: bool


def read_checked(file: Path) -> list[CheckedDraft]:
    """Read drafts.

    Raises:
        ConfigError: the file cannot be read, or a line is no draft.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"drafts {str(file)!r} cannot be read: {error.strerror}") from None
    drafts = [
        _checked(json_object(line, f"{file} line {number}", REMEDY), f"{file} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not drafts:
        raise ConfigError(f"drafts {str(file)!r} holds none; {REMEDY}")
    return drafts


def _checked(row: Mapping[str, Any], where: str) -> CheckedDraft:  # Any: as JSON has it
    for name in ("problem_id", "problem", "solution"):
        if not isinstance(row.get(name), str):
            raise ConfigError(f"{where}: {name!r} is no text; {REMEDY}")
    if not isinstance(row.get("correct"), bool):
        raise ConfigError(f"{where}: 'correct' is neither true nor false; {REMEDY}")
    return CheckedDraft(row["problem_id"], row["problem"], row["solution"], row["correct"])


async def kept_drafts(
    sources: Sequence[Path], prompts: Prompts
) -> tuple[list[Ballot], str | None, tuple[str, ...]]:
    """Return drafts with their texts, the model that drew them, and the hashes of their data.

    Args:
        sources: Folders of `pdr-graph eval`, of one model, or files of JSON lines.
        prompts: Prompts to which the drafts of files are taken to be replies.

    Raises:
        ConfigError: one cannot be read, has no texts, or they are of several models.
    """
    files = [each for each in sources if each.is_file()]
    runs = [read_run(each) for each in sources if each not in files]
    ballots = await ballots_of(runs, signals=False, texts=True) if runs else []
    data = {run.header["data"]["sha256"] for run in runs}
    for file in files:
        ballots += await ballots_of_lines(file, prompts)
        data.add(hashlib.sha256(file.read_bytes()).hexdigest())
    return ballots, one_model(runs) if runs else None, tuple(sorted(data))


def first_problems(ballots: Sequence[Ballot], limit: int | None) -> list[Ballot]:
    """Return the ballots of as many problems, in the order in which they come; None is all."""
    kept = set(list(dict.fromkeys(each.problem_id for each in ballots))[:limit])
    return [each for each in ballots if each.problem_id in kept]


async def ballots_of_lines(file: Path, prompts: Prompts) -> list[Ballot]:
    """Return the drafts of a file as ballots, for the answer kind `math`.

    Raises:
        ConfigError: the file cannot be read, a line is no draft, or none states an answer.
    """
    kind = answer_kind("math")
    answer_format = prompts.render("answer_math")
    by_problem: dict[str, list[CheckedDraft]] = {}
    for draft in read_checked(file):
        by_problem.setdefault(draft.problem_id, []).append(draft)
    ballots = []
    for problem, drafts in by_problem.items():
        answers = [kind.extract(each.solution) for each in drafts]
        told = [(a, d) for a, d in zip(answers, drafts, strict=True) if a is not None]
        if not told:
            continue
        groups = await clusters(kind, [answer for answer, _ in told])
        ballots.append(
            Ballot(
                problem_id=problem,
                drafts=tuple(_draft(number, *each) for number, each in enumerate(told)),
                correct=tuple(draft.correct for _, draft in told),
                groups=tuple(map(tuple, groups)),
                voters=len(drafts),
                prompt=prompts.render(
                    "draft", problem=drafts[0].problem, answer_format=answer_format
                ),
                solutions=tuple(draft.solution for _, draft in told),
            )
        )
    if not ballots:
        raise ConfigError(f"no draft of {str(file)!r} states an answer")
    return ballots


def _draft(index: int, answer: str, draft: CheckedDraft) -> Draft:
    return Draft(
        round=1,
        index=index,
        solution=draft.solution,
        answer=answer,
        tokens=0,
        truncated=False,
        error=None,
        detail="",
        seed=0,
        seconds=0.0,
    )


# -------------------------------------------------------------------------------- which learn


@dataclass(frozen=True, slots=True)
class ProblemSplit:
    """Ids of problems: those that learn, those that tell when to stop, those that are judged."""

    learning: frozenset[str]
    stopping: frozenset[str]
    judged: frozenset[str]


def splits_of(problems: Sequence[str], folds: int, seed: int) -> list[ProblemSplit]:
    """Divide problems; the last split is that of the adapter which is kept.

    Args:
        problems: Their ids.
        folds: 1 holds a quarter out; more judge each problem once, and a last split learns from
            all.
        seed: Of the division.
    """
    order = sorted(set(problems))
    random.Random(seed).shuffle(order)
    if folds == 1:
        return [_split(order, set(order[: max(1, round(_HELD * len(order)))]))]
    parts = [set(order[fold::folds]) for fold in range(folds)]
    return [_split(order, part) for part in [*parts, set()]]


def _split(order: Sequence[str], judged: set[str]) -> ProblemSplit:
    others = [each for each in order if each not in judged]
    num_stopping = max(1, round(_STOPPING * len(others)))
    return ProblemSplit(
        frozenset(others[num_stopping:]), frozenset(others[:num_stopping]), frozenset(judged)
    )


def balanced(drafts: Sequence[CheckedDraft], per_kind: int, seed: int) -> list[CheckedDraft]:
    """Return as many right drafts as wrong ones of each problem; none if it lacks either kind."""
    by_problem: dict[str, tuple[list[CheckedDraft], list[CheckedDraft]]] = {}
    for draft in drafts:
        by_problem.setdefault(draft.problem_id, ([], []))[draft.correct].append(draft)
    rng = random.Random(seed)
    taken = []
    for wrong, right in by_problem.values():
        number = min(len(wrong), len(right), per_kind)
        taken += rng.sample(wrong, number) + rng.sample(right, number)
    return taken


def auc_within(drafts: Sequence[CheckedDraft], margins: Sequence[float]) -> float:
    """Return how often a right draft has a larger margin than a wrong one of the same problem.

    The mean over problems that have both, 0.5 where there is none. A tie is half of it.
    """
    by_problem: dict[str, tuple[list[float], list[float]]] = {}
    for draft, margin in zip(drafts, margins, strict=True):
        by_problem.setdefault(draft.problem_id, ([], []))[draft.correct].append(margin)
    shares = [
        sum((r > w) + (r == w) / 2 for r in right for w in wrong) / (len(right) * len(wrong))
        for wrong, right in by_problem.values()
        if wrong and right
    ]
    return sum(shares) / len(shares) if shares else 0.5


def calibrated(margins: Sequence[float], correct: Sequence[bool]) -> tuple[float, float]:
    """Return a and b such that sigmoid(a margin + b) is the chance that a draft is right.

    a is 0 or more: margins that tell nothing, or the contrary, give all drafts the same weight.
    """
    right = sum(correct)
    rate = (right + 1) / (len(correct) + 2)
    flat = 0.0, math.log(rate / (1 - rate))
    if right in {0, len(correct)}:
        return flat
    model = LogisticRegression(max_iter=1000).fit([[each] for each in margins], correct)
    scale, shift = float(model.coef_[0][0]), float(model.intercept_[0])
    return (scale, shift) if scale > 0 else flat
