"""How a run ends: one more call, a vote, or a selection."""

from dataclasses import replace

import pytest

from pdr_graph.answers import answer_kind
from pdr_graph.ballot import MAX_ANSWERS, add_votes, is_decided
from pdr_graph.config import DRAFT_FINISHES
from pdr_graph.errors import CallError
from pdr_graph.finish import FINISHES, refine, select, vote
from pdr_graph.types import Workspace
from tests.fakes import drafts_with, make_draft, make_step, prompts_of


def with_workspace(text: str) -> list[Workspace]:
    return [Workspace(text=text, tokens=3, estimated=False, sources=[0])]


def test_every_name_is_registered():
    """A config may name these, and those that read drafts are marked."""
    votes = ["vote", "weighted_vote", "pairwise_vote"]
    assert sorted(FINISHES) == sorted(["guarded", "refine", "select", *votes])
    assert {"select", *votes} == DRAFT_FINISHES


# ------------------------------------------------------------------------------ refine


async def test_refinement_reads_problem_and_workspace():
    """One call, the problem first, the notes after it, the answer's form last."""
    step = make_step([], ["So it is \\boxed{42}."])
    step.workspaces.extend(with_workspace("Two of three say 42."))
    solution = await refine(step)
    assert solution == {
        "text": "So it is \\boxed{42}.",
        "answer": "42",
        "truncated": False,
        "finish": "refine",
    }
    (prompt,) = prompts_of(step)
    assert prompt.startswith(step.problem)
    assert prompt.index(step.problem) < prompt.index("Two of three say 42.")
    assert prompt.endswith("\\boxed{}.")


@pytest.mark.parametrize("workspaces", [[], with_workspace("")])
async def test_without_a_workspace_the_call_is_long_cot(workspaces):
    """There are no notes to speak of, so the prompt is that of a first draft."""
    step = make_step([], ["It is \\boxed{42}."])
    step.workspaces.extend(workspaces)
    await refine(step)
    (prompt,) = prompts_of(step)
    assert "notes" not in prompt
    assert step.ask.trace.records[0]["template"] == "draft"


@pytest.mark.parametrize(
    ("reply", "note"),
    [
        ("<think>and so on", "spent its max_tokens on thought and states no solution"),
        ("", "came back empty"),
    ],
)
async def test_a_final_call_without_a_solution_is_said(reply, note):
    """The run ends, with no answer and a sentence that says why."""
    step = make_step([], [reply])
    solution = await refine(step)
    assert (solution["text"], solution["answer"]) == ("", None)
    assert step.notes == [f"the final call {note}"]


async def test_a_final_call_that_fails_is_an_error():
    """There is nothing to fall back to; the run can be resumed."""
    with pytest.raises(CallError, match="gone"):
        await refine(make_step([], [ValueError("gone")]))


async def test_the_answer_kind_decides_what_an_answer_is():
    """A letter, or nothing at all where the solution itself is the answer."""
    choice = await refine(make_step([], ["It is \\boxed{B}."], answer="choice"))
    text = await refine(make_step([], ["It is \\boxed{B}."], answer="text"))
    assert (choice["answer"], text["answer"]) == ("B", None)


# ------------------------------------------------------------------------------ vote


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (("1", "2", "2"), 1),
        (("1", "2"), 0),
        (("2", "1", "1", "2"), 0),
        (("3", "1", "1", "2", "2"), 1),
        ((None, None, "7"), 2),
        (("1", None, None, None), 0),
        (("1/2", "3", "0.5"), 0),
    ],
)
async def test_the_most_common_answer_wins_and_ties_go_to_the_first(answers, winner):
    """Drafts without an answer do not vote; equal values count together."""
    drafts = drafts_with(*answers)
    solution = await vote(make_step(drafts, finish="vote"))
    assert (solution["text"], solution["answer"]) == (drafts[winner]["solution"], answers[winner])


async def test_pooled_rounds_vote_together():
    """The answer that most drafts of all rounds give wins over the last round's."""
    earlier = await add_votes(answer_kind("math"), None, drafts_with("7", "7", "7", None))
    last = drafts_with("8", "8", "7.0")
    tally = await add_votes(answer_kind("math"), earlier, last)
    assert [(vote["answer"], vote["count"]) for vote in tally["votes"]] == [("7", 4), ("8", 2)]
    assert tally["voters"] == 7
    step = replace(make_step(last, finish="vote", pool_rounds=True), tally=tally)
    solution = await vote(step)
    assert (solution["answer"], solution["text"]) == ("7", make_draft(0, "7")["solution"])


async def test_a_tally_stays_small():
    """However many different answers there are, the most common are kept."""
    tally = None
    for round_number in range(4):
        answers = ["5", *(str(1000 + 16 * round_number + i) for i in range(16))]
        tally = await add_votes(answer_kind("math"), tally, drafts_with(*answers))
        assert len(tally["votes"]) == MAX_ANSWERS
    assert (tally["voters"], tally["votes"][0]["count"]) == (4 * 17, 4)


@pytest.mark.parametrize(
    ("answers", "more", "decided"),
    [("7778", 1, True), ("7778", 2, False), ("77", 2, False), ("777", 2, True), ("777", 0, False)],
)
async def test_a_vote_is_decided_when_the_lead_exceeds_what_may_come(answers, more, decided):
    """Without a draft to come there is nothing left to save."""
    tally = await add_votes(answer_kind("math"), None, drafts_with(*answers))
    assert is_decided(tally, more) is decided
    nobody = await add_votes(answer_kind("math"), None, drafts_with(None))
    assert not is_decided(nobody, more)


async def test_a_vote_makes_no_call():
    """It is free."""
    step = make_step(drafts_with("1", "2"), finish="vote")
    await vote(step)
    assert prompts_of(step) == []


async def test_when_nobody_has_an_answer_the_first_draft_is_handed_in():
    """And the run says that there was nothing to vote on."""
    step = make_step(drafts_with(None, None), finish="vote")
    solution = await vote(step)
    assert (solution["text"], solution["answer"]) == (step.drafts[0]["solution"], None)
    assert step.notes == ["no draft states an answer, so there is nothing to vote on"]


async def test_a_cut_draft_that_wins_is_still_marked_as_cut():
    """The solution says that it stops in the middle."""
    drafts = drafts_with("1", "2", "2")
    drafts[1]["truncated"] = True
    solution = await vote(make_step(drafts, finish="vote"))
    assert (solution["truncated"], solution["finish"]) == (True, "vote")


# ------------------------------------------------------------------------------ select


async def test_the_named_draft_is_handed_in():
    """One call sees all drafts, numbered from 1; its choice is handed in as it stands."""
    drafts = drafts_with("1", "2", "3")
    step = make_step(drafts, ["The second checks out.\nBest: 2"], finish="select")
    solution = await select(step)
    assert (solution["text"], solution["answer"]) == (drafts[1]["solution"], "2")
    (prompt,) = prompts_of(step)
    for number, draft in enumerate(drafts, start=1):
        assert f"<candidate {number}>\n{draft['solution']}\n</candidate {number}>" in prompt


@pytest.mark.parametrize(
    "reply", ["They are all fine.", "Best: 9", "Best: none", "", "<think>Best: 3"]
)
async def test_where_none_is_named_agreement_decides(reply):
    """A reply that names no candidate does not end the run; it is noted."""
    drafts = drafts_with("1", "2", "2")
    step = make_step(drafts, [reply], finish="select")
    assert (await select(step))["answer"] == "2"
    assert step.notes == ["the model named no candidate; the most agreed draft is handed in"]


async def test_a_candidate_is_cut_to_its_share_and_keeps_its_answer():
    """Sixteen long drafts fit one prompt, each with what it concludes."""
    drafts = [make_draft(n, str(n), solution="prose " * 2000) for n in range(16)]
    step = make_step(drafts, ["Best: 16"], finish="select", solution_tokens=64)
    solution = await select(step)
    assert solution["text"] == drafts[15]["solution"]
    (prompt,) = prompts_of(step)
    assert len(prompt) < 16 * 64 * 4
    assert all(f"Final answer: {n}\n" in prompt for n in range(16))


async def test_drafts_are_named_by_place_and_not_by_index():
    """Where a draft of the round failed, the numbers still count from 1."""
    drafts = [make_draft(3, "3"), make_draft(7, "7")]
    solution = await select(make_step(drafts, ["Best: 2"], finish="select"))
    assert solution["answer"] == "7"


def test_the_fakes_speak_of_the_same_answers():
    """The drafts that these tests make up state the answers that they are given."""
    for kind, answer in (("math", "42"), ("choice", "B")):
        solution = make_draft(0, answer)["solution"]
        assert answer_kind(kind).extract(solution) == answer
