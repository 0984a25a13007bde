"""The verifiers, and their verdict where they cannot judge."""

import pytest

from pdr_graph.errors import CallError, counted
from pdr_graph.finish import VERIFIERS, consensus, judge, none
from pdr_graph.types import Solution
from tests.fakes import CountBy, drafts_with, make_step, num_words, prompts_of


def solved(text: str = "It is \\boxed{42}.", answer: str | None = "42") -> Solution:
    return Solution(text=text, answer=answer, truncated=False, finish="refine")


def test_every_name_is_registered():
    """A config may name these."""
    assert sorted(VERIFIERS) == ["consensus", "judge", "none"]


async def test_without_a_verifier_nobody_judged():
    """None is not the same as False: nothing is rejected."""
    verdict = await none(make_step(solution=solved()))
    assert verdict == {"verifier": "none", "accepted": None, "reason": "not verified"}


# ------------------------------------------------------------------------------ consensus


@pytest.mark.parametrize(
    ("answers", "accepted", "agreeing"),
    [
        (("42", "42", "7"), True, 2),
        (("42", "7"), True, 1),
        (("42", "7", "7"), False, 1),
        (("7", "7"), False, 0),
        (("42", None, None), False, 1),
        (("42.0", "84/2"), True, 2),
    ],
)
async def test_half_of_the_drafts_carry_a_solution(answers, accepted, agreeing):
    """Drafts without an answer count among all, and equal values are equal answers."""
    step = make_step(drafts_with(*answers), solution=solved(), verifier="consensus")
    verdict = await consensus(step)
    assert verdict["accepted"] is accepted
    total = len(answers)
    assert (
        verdict["reason"] == f"{agreeing} of the last {counted(total, 'draft')} reach the answer 42"
    )


async def test_a_solution_without_an_answer_agrees_with_nobody():
    """Not even with drafts that have none."""
    step = make_step(drafts_with(None, None), solution=solved("Hm.", None), verifier="consensus")
    verdict = await consensus(step)
    assert verdict["accepted"] is False
    assert verdict["reason"] == "the solution states no final answer"


async def test_consensus_makes_no_call():
    """It is free."""
    step = make_step(drafts_with("42"), solution=solved(), verifier="consensus")
    await consensus(step)
    assert prompts_of(step) == []


# ------------------------------------------------------------------------------ judge


@pytest.mark.parametrize(
    ("reply", "accepted"),
    [
        ("All steps hold.\nVerdict: correct", True),
        ("Step 2 fails.\nVerdict: incorrect", False),
        ("Step 2 fails.\n**Verdict:** Incorrect.", False),
        ("VERDICT: CORRECT", True),
        ("At first I thought verdict: correct, but no.\nVerdict: incorrect", False),
        ("<think>Verdict: incorrect</think>Verdict: correct", True),
        ("x " * 3000 + "\nVerdict: correct", True),
    ],
)
async def test_the_last_verdict_in_the_reply_counts(reply, accepted):
    """However it is set, and wherever else the word falls."""
    verdict = await judge(make_step([], [reply], solution=solved()))
    assert (verdict["verifier"], verdict["accepted"]) == ("judge", accepted)


@pytest.mark.parametrize(
    "reply",
    [
        "I cannot tell.",
        "",
        "Verdict: not correct",
        "Verdict: correctness is doubtful",
        "Verdict: partly",
        "<think>Verdict: correct",
        "Verdict: correct\n" + "But then it went on and on. " * 200,
    ],
)
async def test_a_reply_without_a_verdict_is_neither(reply):
    """It is not taken for a rejection, which would cost a round, nor for a proof."""
    verdict = await judge(make_step([], [reply], solution=solved()))
    assert verdict["accepted"] is None
    assert verdict["reason"] == "the judge stated no verdict"


async def test_the_judge_sees_the_problem_and_the_solution():
    """And not the drafts that led to it."""
    step = make_step(drafts_with("7"), ["Verdict: correct"], solution=solved("THE SOLUTION"))
    await judge(step)
    (prompt,) = prompts_of(step)
    assert prompt.startswith(step.problem)
    assert "THE SOLUTION" in prompt
    assert step.drafts[0]["solution"] not in prompt


async def test_the_reason_goes_into_the_next_workspace_and_is_bounded():
    """A judge that writes a book leaves at most half a workspace of it."""
    reply = "word " * 300 + "\nVerdict: incorrect"
    step = make_step([], [reply], solution=solved(), counter=CountBy(num_words), kappa=100)
    verdict = await judge(step)
    assert verdict["accepted"] is False
    assert num_words(verdict["reason"]) <= 50
    assert verdict["reason"].startswith("word word")


async def test_no_solution_is_no_call():
    """There is nothing to judge, and that is a rejection."""
    step = make_step([], ["Verdict: correct"], solution=solved("", None))
    verdict = await judge(step)
    assert verdict["accepted"] is False
    assert verdict["reason"] == "there is no solution to judge"
    assert prompts_of(step) == []


async def test_a_long_solution_is_cut_for_the_judge():
    """It fits the prompt that the budget has planned for."""
    text = "word " * 5000
    step = make_step(
        [],
        ["Verdict: correct"],
        solution=solved(text),
        counter=CountBy(num_words),
        solution_tokens=64,
    )
    await judge(step)
    assert num_words(prompts_of(step)[0]) <= 64 + 60


async def test_a_cut_solution_shows_the_judge_its_answer():
    """What is to be judged is never what the cut takes away."""
    text = "word " * 5000 + "\\boxed{42}"
    step = make_step([], ["Verdict: correct"], solution=solved(text), solution_tokens=64)
    await judge(step)
    assert "Final answer: 42" in prompts_of(step)[0]


async def test_a_judge_that_cannot_be_asked_is_an_error():
    """No verdict is made up for a call that failed; the run can be resumed."""
    with pytest.raises(CallError, match="gone"):
        await judge(make_step([], [ValueError("gone")], solution=solved()))
