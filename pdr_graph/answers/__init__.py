"""What counts as an answer, for each kind of question, and when two answers are the same.

`math` is a number, a formula or a set. `choice` is one of the options A to J. `text` is the
solution itself (an essay, code, a proof), so there is nothing to count or to vote on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

from pdr_graph.answers.checker import Checker, CheckResult, CheckVerdict, Mode
from pdr_graph.answers.extract import boxed_answer, final_answer, stated_answer, without_thought
from pdr_graph.answers.pool import Limits, VoteBudget, WorkerPool, one_vote
from pdr_graph.errors import ConfigError

__all__ = [
    "AnswerKind",
    "CheckResult",
    "CheckVerdict",
    "Checker",
    "ChoiceAnswers",
    "Limits",
    "MathAnswers",
    "Mode",
    "TextAnswers",
    "VoteBudget",
    "WorkerPool",
    "agreement",
    "answer_kind",
    "check",
    "clusters",
    "one_vote",
]


class AnswerKind(Protocol):
    """Finds the final answer in a solution, and tells which answers are the same."""

    @property
    def name(self) -> str:
        """Its name in a config."""

    @property
    def has_short_answer(self) -> bool:
        """Whether a solution states an answer that can be counted and voted on."""

    def extract(self, solution: str) -> str | None:
        """Return the final answer of a solution; None if it states none.

        It is pure and fast, and accepts any text.
        """

    async def same(self, left: str, right: str) -> bool:
        """Return whether two extracted answers are equivalent; the event loop is never held up."""


class MathAnswers:
    """Reads a box or an answer line; equivalence is mathematical."""

    name = "math"
    has_short_answer = True

    def __init__(self, checker: Checker | None = None) -> None:
        self.checker = checker or Checker()
        """Starts its first process when an answer needs one."""

    def extract(self, solution: str) -> str | None:
        """Return the content of the last box, or of the last line that states an answer."""
        return final_answer(solution)

    async def same(self, left: str, right: str) -> bool:
        """Return whether two answers are mathematically equivalent."""
        return await self.checker.same(left, right)

    def close(self) -> None:
        """End the checker's processes. A program that exits need not call it."""
        self.checker.close()


_WRAPPING = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{|[{}$*\\]")
_LETTER = re.compile(
    r"(?i:option|choice|answer)? \s* (?: \(([A-J])\) | ([A-J]) (?: [).:,] | \s+(?![a-z]) | $ ))",
    re.VERBOSE,
)
_ALONE = re.compile(r"\(?([a-j])\)?")
# More than one option: the question asked for one.
_MORE = re.compile(r"\s*(?:,|;|&|/|and\b|or\b)\s*\(?[A-J](?![\w'])")


class ChoiceAnswers:
    """Reads the letter of the option that a solution names."""

    name = "choice"
    has_short_answer = True

    def extract(self, solution: str) -> str | None:
        """Return the letter in the last box, or of the last line that states an answer."""
        text = without_thought(solution)
        if text is None:
            return None
        boxed = boxed_answer(text) or ""
        if alone := _ALONE.fullmatch(_WRAPPING.sub("", boxed).strip()):
            return alone.group(1).upper()
        return _letter(boxed) or _letter(stated_answer(text) or "")

    async def same(self, left: str, right: str) -> bool:
        """Compare two letters."""
        return left == right


def _letter(answer: str) -> str | None:
    r"""Return the option that an answer such as `\textbf{(B)}\ 25` begins with."""
    answer = _WRAPPING.sub(" ", answer).strip()
    found = _LETTER.match(answer)
    if found is None or _MORE.match(answer, found.end(found.lastindex or 0)):
        return None
    return found.group(1) or found.group(2)


class TextAnswers:
    """Has no short answer: nothing can be counted or voted on."""

    name = "text"
    has_short_answer = False

    def extract(self, solution: str) -> str | None:
        """Return None: no part of a solution is its answer."""
        return None

    async def same(self, left: str, right: str) -> bool:
        """Compare two texts, apart from space around them."""
        return left.strip() == right.strip()


ANSWER_KINDS: dict[str, Callable[[], AnswerKind]] = {
    "math": MathAnswers,
    "choice": ChoiceAnswers,
    "text": TextAnswers,
}


@lru_cache
def answer_kind(name: str) -> AnswerKind:
    """Return the answer kind of this name, always the same object: math shares its workers.

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

    Make a `Checker` for other limits, or to end the workers before the program ends.
    """
    kind = answer_kind("math")
    assert isinstance(kind, MathAnswers)
    return await kind.checker.check(gold, solution, mode=mode, truncated=truncated)


async def clusters(kind: AnswerKind, answers: Sequence[str | None]) -> list[list[int]]:
    """Group the positions of equivalent answers: larger groups first, then earlier ones.

    A draft without an answer (None) is in no group. The comparisons are one vote, with a budget:
    answers that cannot be compared in it are groups of their own.
    """
    groups: dict[str, list[int]] = {}
    first_of: dict[str, str] = {}
    with one_vote():
        for index, answer in enumerate(answers):
            if answer is None:
                continue
            if answer not in first_of:
                first_of[answer] = await _first_equivalent(kind, answer, list(groups))
            groups.setdefault(first_of[answer], []).append(index)
    # Groups are in order of their first members, and the sort is stable.
    return sorted(groups.values(), key=len, reverse=True)


async def _first_equivalent(kind: AnswerKind, answer: str, representatives: list[str]) -> str:
    """Return the first answer of the group that the answer belongs to; itself if there is none."""
    # One after another: the first comparison computes the answer's values, the others find them,
    # and none is made once the group is found.
    for each in representatives:
        if await kind.same(each, answer):
            return each
    return answer


async def agreement(kind: AnswerKind, answers: Sequence[str | None]) -> tuple[str | None, float]:
    """Return the most common answer, as first written, and its share of all drafts.

    Drafts without an answer count in the share: 3 of 4 answers among 8 drafts are 3/8.
    """
    groups = await clusters(kind, answers)
    if not groups:
        return None, 0.0
    return answers[groups[0][0]], len(groups[0]) / len(answers)
