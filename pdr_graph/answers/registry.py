"""The answer kinds by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from pdr_graph.answers.checker import CheckResult, Mode
from pdr_graph.answers.choice import ChoiceAnswers
from pdr_graph.answers.kind import AnswerKind
from pdr_graph.answers.math_answers import MathAnswers
from pdr_graph.answers.text import TextAnswers
from pdr_graph.errors import ConfigError

ANSWER_KINDS: dict[str, Callable[[], AnswerKind]] = {
    "math": MathAnswers,
    "choice": ChoiceAnswers,
    "text": TextAnswers,
}


@lru_cache
def answer_kind(name: str) -> AnswerKind:
    """Return the answer kind of this name, the same one every time: math shares its workers.

    Raises:
        ConfigError: There is no such kind.
    """
    if name not in ANSWER_KINDS:
        known = ", ".join(ANSWER_KINDS)
        raise ConfigError(f"unknown answer kind {name!r}; known are {known}")
    return ANSWER_KINDS[name]()


async def check(
    gold: str, solution: str, *, mode: Mode = "answer", truncated: bool = False
) -> CheckResult:
    """Check a solution of a mathematical problem with the workers that `answer_kind` shares.

    Make a `Checker` for other limits, or to end the workers before the program does.
    """
    kind = answer_kind("math")
    assert isinstance(kind, MathAnswers)
    return await kind.checker.check(gold, solution, mode=mode, truncated=truncated)
