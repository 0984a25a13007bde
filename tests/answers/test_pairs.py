"""Every pair of `pairs.py` gets the verdict that graders would give, however it is asked."""

import re
from pathlib import Path

import pytest

from pdr_graph.answers import Checker
from tests.answers.pairs import PAIRS, RAW_TEXTS, SOLUTIONS, AnswerPair, SolutionPair

PAGE = Path(__file__).parents[2] / "docs/explanation/answers.md"
DECISION = re.compile(r"\| ([a-z ]+) \| `([^`]+)` \| `([^`]+)` \| (correct|wrong) \| (.+) \|")


def _decisions() -> list[AnswerPair]:
    """Read the table of the page; the gold decides in it."""
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("| kind | gold | answer | verdict | rule |\n|---|---|---|---|---|\n")[2]
    lines = table.partition("\n\n")[0].splitlines()
    rows = [DECISION.fullmatch(line) for line in lines]
    assert all(rows), [line for line, row in zip(lines, rows, strict=True) if row is None]
    return [
        AnswerPair(row[1], row[2], row[3], row[4] == "correct", row[5], by_gold=True)
        for row in rows
        if row
    ]


def _formula(answer: str) -> str:
    """Write an answer as it stands in a sentence: mathematics between dollars, words bare."""
    return f"${answer}$" if "\\" in answer and "\\$" not in answer else answer


@pytest.mark.parametrize(
    "pair", [*PAIRS, *_decisions()], ids=lambda pair: f"{pair.gold} | {pair.answer}"
)
async def test_pair(checker: Checker, pair: AnswerPair) -> None:
    """A box, an answer line and a bare text get the same verdict; `same` is symmetric."""
    gold, answer = pair.gold, pair.answer
    got = {
        "box": (await checker.check(gold, f"So it is $\\boxed{{{answer}}}$.")).correct,
        "line": (await checker.check(gold, f"The answer is {_formula(answer)}.")).correct,
        "raw": (await checker.check(gold, _formula(answer), mode="raw")).correct,
    }
    if not pair.by_gold:
        got["same"] = await checker.same(gold, answer)
        got["same, turned round"] = await checker.same(answer, gold)
    assert got == dict.fromkeys(got, pair.right), pair.why


@pytest.mark.parametrize("pair", SOLUTIONS, ids=lambda pair: f"{pair.gold} | {pair.solution}")
async def test_solution(checker: Checker, pair: SolutionPair) -> None:
    """The answer is found in the solution, and nothing else is taken for it."""
    assert (await checker.check(pair.gold, pair.solution)).correct is pair.right, pair.why


@pytest.mark.parametrize("pair", RAW_TEXTS, ids=lambda pair: f"{pair.gold} | {pair.solution}")
async def test_raw_text(checker: Checker, pair: SolutionPair) -> None:
    """A text without an answer line is searched for one answer, and never for a favourable one."""
    checked = await checker.check(pair.gold, pair.solution, mode="raw")
    assert checked.correct is pair.right, pair.why
