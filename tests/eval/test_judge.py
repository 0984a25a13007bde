"""Which solutions and drafts are right, and what the oracles do with them."""

import pytest

from pdr_graph.answers import CheckVerdict
from pdr_graph.errors import ConfigError
from pdr_graph.eval.judge import Judge, oracles
from pdr_graph.eval.problems import Problem
from pdr_graph.types import Solution
from tests.fakes import drafts_with, make_draft, make_step

PROBLEM = Problem("p", "What is 1 + 1?", "2")


@pytest.mark.parametrize(
    ("text", "cut", "reason"),
    [
        (r"\boxed{2}", False, "correct"),
        (r"\boxed{2.0}", True, "correct"),
        (r"\boxed{3}", False, "wrong"),
        ("it is two or so", False, "no_answer"),
        ("it is two or", True, "truncated"),
    ],
)
async def test_a_solution_is_judged_by_what_it_states(text, cut, reason):
    """The last number of a text is not an answer, so a cut solution gets no credit for it."""
    judged = await Judge.of_kind("math").solution(PROBLEM, text, truncated=cut)
    assert (judged.reason, judged.correct) == (reason, reason == "correct")


@pytest.mark.parametrize(
    ("error", "reason"),
    [("failed", "failed"), ("cut", "failed"), ("empty", "no_answer"), ("truncated", "truncated")],
)
async def test_a_draft_without_a_solution_is_judged_by_why(error, reason):
    """None of them counts as a wrong answer, since they give none."""
    judged = await Judge.of_kind("math").draft(PROBLEM, {**make_draft(0), "error": error})
    assert (judged.answer, judged.reason) == (None, reason)


async def test_letters_are_compared_as_letters():
    """What surrounds the letter of the gold answer does not matter."""
    judge = Judge.of_kind("choice")
    problem = Problem("p", "Which?", "(B)")
    assert (await judge.solution(problem, r"\boxed{B}", truncated=False)).correct
    assert not (await judge.solution(problem, r"\boxed{C}", truncated=False)).correct


async def test_a_source_judges_by_its_own_rule():
    """Its scorer gets the extracted answer."""

    async def score(problem: Problem, answer: str) -> CheckVerdict:
        return CheckVerdict.CORRECT if answer == "two" else CheckVerdict.WRONG

    judge = Judge.of_kind("math", score)
    assert (await judge.solution(PROBLEM, r"\boxed{two}", truncated=False)).correct
    assert not (await judge.solution(PROBLEM, r"\boxed{2}", truncated=False)).correct


def test_text_has_no_answer_to_judge():
    """It is refused when the arm is made, before any call."""
    with pytest.raises(ConfigError, match="answer kind 'text' has no short answer"):
        Judge.of_kind("text")


def oracle(name: str):
    """Return an oracle for the problem."""
    return oracles(Judge.of_kind("math"), PROBLEM).distiller(name)


@pytest.mark.parametrize(("name", "fit"), [("oracle_correct", {0, 3, 4}), ("oracle_wrong", {1, 2})])
async def test_oracles_admit_only_what_is_right_or_only_what_is_wrong(name, fit):
    """Each next draft gets up to k of them; a draft without an answer is wrong."""
    step = make_step(drafts_with("2", "3", None, "2", "2.0"), k=2, next_width=5, distiller=name)
    made = await oracle(name).distil(step)
    assert len(made) == 5
    for entries in made:
        sources = [source for entry in entries for source in entry.sources]
        assert len(sources) == len(set(sources)) == 2
        assert set(sources) <= fit


async def test_an_oracle_without_a_fitting_draft_leaves_the_workspace_empty():
    """A note records it."""
    step = make_step(drafts_with("3", "4"), k=2, next_width=2, distiller="oracle_correct")
    assert await oracle("oracle_correct").distil(step) == [[], []]
    assert step.notes == ["round 1: no draft is correct, the workspace is empty"]


@pytest.mark.parametrize("answer", ["2", "3"])
async def test_the_gold_verifier_tells_right_from_wrong_and_not_the_answer(answer):
    """The next drafts read its reason, which must not tell the answer."""
    own = oracles(Judge.of_kind("math"), PROBLEM)
    solution = Solution(
        text=f"\\boxed{{{answer}}}", answer=answer, truncated=False, finish="refine"
    )
    verdict = await own.verifier("gold")(make_step(solution=solution, verifier="gold"))
    assert verdict["accepted"] == (answer == "2")
    assert "2" not in verdict["reason"]
