"""Every pair of `pairs.py` gets the verdict that graders would give, however it is asked."""

import pytest

from pdr_graph.answers import Checker
from tests.answers.pairs import PAIRS, SOLUTIONS, AnswerPair, SolutionPair


def _formula(answer: str) -> str:
    """Write an answer as it stands in a sentence: mathematics between dollars, words bare."""
    return f"${answer}$" if "\\" in answer and "\\$" not in answer else answer


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.gold} | {pair.answer}")
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
