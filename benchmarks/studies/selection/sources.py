"""The problems of the study: to fit a judge on, to judge it by, and to confirm what was chosen."""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.answers.extract import final_answer
from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem, load_problems

TASKS = {
    "chain_sum": "min_terms=4&max_terms=5&min_digits=2&max_digits=2",
    "basic_arithmetic": "min_terms=2&max_terms=4&min_digits=1&max_digits=1",
    "lcm": "",
}
"""Procedural tasks by name, and their settings; their answers are single numbers."""
NUM_DRAWN = 1280
"""Problems that are drawn of each task; the first of those that differ are taken."""
SEED = 18
"""Of the tasks, and of the order in which GSM8K's problems are taken."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the problems of each source."""

    name: str
    seed: int
    """Of the samples."""
    gsm8k: int
    """Problems of GSM8K."""
    task: int
    """Problems of each procedural task."""


FITTING = Part("fitting", seed=1018, gsm8k=300, task=120)
JUDGING = Part("judging", seed=2018, gsm8k=200, task=200)
CONFIRMING = Part("confirming", seed=3018, gsm8k=200, task=300)
PARTS = (FITTING, JUDGING, CONFIRMING)


def sources(part: Part, limit: int | None, gsm8k: Path | None, folder: Path) -> Mapping[str, Path]:
    """Write the problems of a part, and return a file of each source by its name.

    No problem is in two parts, and none is in a part twice.

    Args:
        part: Which problems.
        limit: Problems of each; None takes as many as the plan says.
        gsm8k: The training set as its authors publish it; None leaves that source out.
        folder: Where the files are written, as `pdr-graph eval` reads them.

    Raises:
        ConfigError: the training set cannot be read, or a source has too few problems.
    """
    earlier = PARTS[: PARTS.index(part)]
    found = {}
    if gsm8k is not None:
        before, count = sum(each.gsm8k for each in earlier), limit or part.gsm8k
        found["gsm8k"] = _part(_gsm8k(gsm8k), "gsm8k", before, count)
    for name, settings in TASKS.items():
        source = f"reasoning-gym:{name}?size={NUM_DRAWN}&seed={SEED}"
        problems = load_problems(f"{source}&{settings}" if settings else source).problems
        before, count = sum(each.task for each in earlier), limit or part.task
        found[name] = _part(problems, name, before, count)
    return {
        name: _written(problems, folder / f"{name}-{part.name}.jsonl")
        for name, problems in found.items()
    }


def _gsm8k(file: Path) -> list[Problem]:
    """Return the problems in the study's order."""
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
        problems = [
            Problem(f"gsm8k-train-{n}", row["question"], final_answer(row["answer"]) or "", n)
            for n, row in enumerate(rows)
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--gsm8k {str(file)!r} cannot be read: {error!r}") from None
    random.Random(SEED).shuffle(problems)
    return problems


def _part(problems: Iterable[Problem], name: str, before: int, count: int) -> list[Problem]:
    distinct = list({each.text: each for each in problems}.values())
    if len(distinct) < before + count:
        raise ConfigError(
            f"{name} has {len(distinct)} different problems, and the study needs {before + count}"
        )
    return distinct[before : before + count]


def _written(problems: Iterable[Problem], file: Path) -> Path:
    rows = [{"id": each.id, "problem": each.text, "answer": each.gold} for each in problems]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file
