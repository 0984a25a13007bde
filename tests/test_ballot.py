"""Votes, their weights, and the finishes and distillers that use them."""

import math
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from pdr_graph import build_graph, preset
from pdr_graph.answers import answer_kind
from pdr_graph.ballot import TIE_SIGNAL, add_votes, lead, ranked, share_ahead
from pdr_graph.distill.notes import contested, evidence, tail, trusted
from pdr_graph.distill.workspace import pack
from pdr_graph.errors import CallError
from pdr_graph.finish import guarded, vote, weighted_vote
from pdr_graph.judge import TAIL, WINDOW, Evidence, logprob_signals
from pdr_graph.types import Draft
from tests.fakes import drafts_with, make_draft, make_step, num_words, prompts_of

MATH = answer_kind("math")


def draft_of(
    index: int, answer: str | None, *, weight: float | None = None, logprob: float | None = None
) -> Draft:
    draft = make_draft(index, answer)
    if weight is not None:
        draft["weight"] = weight
    if logprob is not None:
        draft["signals"] = {TIE_SIGNAL: logprob}
    return draft


def told(text: str, *logprobs: object) -> AIMessage:
    """Return a reply with the log-probability of each token."""
    rows = [{"token": "x", "logprob": each} for each in logprobs]
    return AIMessage(text, response_metadata={"logprobs": {"content": rows}})


answers = st.none() | st.integers(1, 4).map(str)
weights = st.floats(0, 1)
weighed = st.lists(st.tuples(answers, weights), min_size=1, max_size=12)


# ------------------------------------------------------------------------------ signals


def test_signals_are_means_of_log_probabilities():
    """Of all tokens, of the last, and of the least likely window."""
    logprobs = [-1.0] * 100 + [-4.0] * WINDOW + [-0.5] * TAIL
    assert logprob_signals(logprobs) == {
        "logprob": pytest.approx(-200 / (100 + WINDOW + TAIL)),
        "logprob_tail": -0.5,
        "logprob_window": -4.0,
    }


@pytest.mark.parametrize("logprobs", [[], [math.nan], [-math.inf]])
def test_what_is_not_known_is_absent(logprobs):
    """No figure is made up."""
    assert logprob_signals(logprobs) == {}


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=200))
def test_the_worst_window_is_never_better_than_the_mean_of_it_all(logprobs):
    """As the mean of all windows cannot be below the lowest one."""
    signals = logprob_signals(logprobs)
    assert min(logprobs) - 1e-9 <= signals["logprob_window"] <= max(logprobs) + 1e-9
    if len(logprobs) % WINDOW == 0 or len(logprobs) < WINDOW:
        assert signals["logprob_window"] <= signals["logprob"] + 1e-9


# ------------------------------------------------------------------------------ weighted vote


@pytest.mark.parametrize(
    ("drafts", "winner"),
    [
        ([("1", None, None), ("2", None, None), ("2", None, None)], "2"),
        ([("1", None, -2.0), ("2", None, -1.0)], "2"),
        ([("1", None, -1.0), ("2", None, -1.0)], "1"),
        ([("1", None, -9.0), ("1", None, -9.0), ("2", None, -0.1)], "1"),
        ([("1", 0.2, None), ("1", 0.3, None), ("2", 0.6, None)], "2"),
        ([("1", 0.2, None), ("1", None, None), ("2", 0.9, None)], "1"),
        ([("1", None, None), ("2", None, -3.0)], "2"),
    ],
    ids=["votes", "tie", "no tie-break", "a tie only", "weights", "one unweighed", "one known"],
)
async def test_the_answer_that_is_ahead(drafts, winner):
    """By weight where every draft has one, else by votes; a tie goes to the likeliest."""
    made = [
        draft_of(index, answer, weight=weight, logprob=logprob)
        for index, (answer, weight, logprob) in enumerate(drafts)
    ]
    solution = await weighted_vote(make_step(made, finish="weighted_vote"))
    assert (solution["answer"], solution["finish"]) == (winner, "weighted_vote")


async def test_the_best_draft_of_an_answer_is_handed_in():
    """The one of the largest weight."""
    drafts = [draft_of(i, "7", weight=weight) for i, weight in enumerate((0.1, 0.8, 0.4))]
    solution = await weighted_vote(make_step(drafts, finish="weighted_vote"))
    assert solution["text"] == drafts[1]["solution"]


async def test_without_any_answer_a_draft_is_handed_in():
    """As a plain vote does."""
    step = make_step(drafts_with(None, None), finish="weighted_vote")
    assert (await weighted_vote(step))["text"] == make_draft(0)["solution"]


@given(weighed)
async def test_without_a_judge_it_is_the_plain_vote(given_drafts):
    """Also for the draft that is handed in."""
    drafts = drafts_with(*(answer for answer, _ in given_drafts))
    plain = await vote(make_step(drafts, finish="vote"))
    own = await weighted_vote(make_step(drafts, finish="weighted_vote"))
    assert (own["answer"], own["text"]) == (plain["answer"], plain["text"])


@given(weighed)
async def test_weights_add_up_over_rounds(given_drafts):
    """One round or two, the order and the lead are the same."""
    drafts = [draft_of(i, answer, weight=w) for i, (answer, w) in enumerate(given_drafts)]
    whole = await add_votes(MATH, None, drafts)
    half = len(drafts) // 2
    parts = await add_votes(MATH, await add_votes(MATH, None, drafts[:half]), drafts[half:])
    assert parts["voters"] == whole["voters"] == len(drafts)
    assert lead(parts) == pytest.approx(lead(whole))
    assert share_ahead(parts)[1] == pytest.approx(share_ahead(whole)[1])
    assert 0.0 <= share_ahead(whole)[1] <= 1.0 + 1e-9


# ------------------------------------------------------------------------------ guarded


async def test_a_clear_vote_asks_for_nothing():
    """One voice cannot change a lead of two."""
    step = make_step(drafts_with("7", "7", "7", "8"), ["\\boxed{8}"], finish="guarded")
    solution = await guarded(step)
    assert (solution["answer"], solution["finish"], prompts_of(step)) == ("7", "guarded", [])


@pytest.mark.parametrize(
    ("drafts", "reply", "answer"),
    [
        (("7", "8"), "\\boxed{8}", "8"),
        (("7", "8"), "\\boxed{9}", "7"),
        (("7", "7", "8"), "\\boxed{8}", "7"),
        (("7", "7", "8"), "\\boxed{9}", "7"),
        (("7", "8"), "no answer", "7"),
        (("7", "8"), ValueError("gone"), "7"),
        ((None, None), "\\boxed{8}", "8"),
    ],
    ids=["decides", "alone", "levels", "against", "none", "fails", "nobody voted"],
)
async def test_a_refinement_is_one_voice(drafts, reply, answer):
    """It decides a tie, and overrules no plurality."""
    step = make_step(drafts_with(*drafts), [reply], finish="guarded")
    assert (await guarded(step))["answer"] == answer
    assert step.ask.meter.row()["calls"] >= 1


async def test_a_refinement_that_fails_is_an_error_where_nobody_voted():
    """There is nothing to fall back to."""
    with pytest.raises(CallError, match="gone"):
        await guarded(make_step(drafts_with(None), [ValueError("gone")], finish="guarded"))


@given(given_drafts=weighed, reply=answers, is_judged=st.booleans())
async def test_it_never_loses_to_the_vote(given_drafts, reply, is_judged):
    """No answer with fewer votes and no more weight than another is handed in."""
    drafts = [
        draft_of(i, answer, weight=w if is_judged else None)
        for i, (answer, w) in enumerate(given_drafts)
    ]
    text = f"It is \\boxed{{{reply}}}." if reply else "I do not know."
    step = make_step(drafts, [text], finish="guarded")
    solution = await guarded(step)
    tally = await add_votes(MATH, None, drafts)
    if solution["answer"] is None:
        assert not tally["votes"]
        return
    standing = {each["answer"]: (each["count"], weight) for each, weight in ranked(tally)}
    count, weight = standing.get(solution["answer"], (0, 0.0))
    voice = 1 if solution["answer"] == reply and step.ask.meter.row()["calls"] else 0
    for other, (votes, heavy) in standing.items():
        loses = votes > count + voice and heavy >= weight + voice
        assert not loses, (other, solution)


@dataclass(frozen=True)
class FixedJudge:
    """Gives every draft one weight; a refinement, for instance."""

    weight: float

    async def weigh(self, draft: Draft, evidence: Evidence) -> float:
        """Return the weight, whatever the draft is."""
        return self.weight


@given(earlier=weighed, given_drafts=weighed, reply=answers, voice=weights)
async def test_it_never_loses_to_the_weighed_vote_of_all_rounds(
    earlier, given_drafts, reply, voice
):
    """Nor where a judge weighs the refinement too, and rounds are pooled."""
    pooled = [draft_of(i, a, weight=w) for i, (a, w) in enumerate([*earlier, *given_drafts])]
    text = f"It is \\boxed{{{reply}}}." if reply else "I do not know."
    tally = await add_votes(MATH, None, pooled)
    step = make_step(pooled[len(earlier) :], [text], finish="guarded", pool_rounds=True)
    step = replace(step, tally=tally, judge=FixedJudge(voice))
    solution = await guarded(step)
    if solution["answer"] is None:
        assert not tally["votes"]
        return
    standing = {each["answer"]: (each["count"], weight) for each, weight in ranked(tally)}
    count, weight = standing.get(solution["answer"], (0, 0.0))
    if solution["answer"] == reply and step.ask.meter.row()["calls"]:
        count, weight = count + 1, weight + voice
    for other, (votes, heavy) in standing.items():
        assert not (votes > count and heavy >= weight + 1e-9), (other, solution)


# ------------------------------------------------------------------------------ distillers


async def test_trusted_shows_what_the_judge_finds_right():
    """The best solution of each such answer, the heaviest first, without numbers."""
    drafts = [
        draft_of(i, a, weight=w)
        for i, (a, w) in enumerate([("7", 0.6), ("8", 0.9), ("8", 0.2), ("9", 0.5)])
    ]
    (entries,) = await trusted(make_step(drafts, distiller="trusted"))
    assert [(entry.title, entry.sources) for entry in entries] == [
        ("Attempt 1:", (1,)),
        ("Attempt 2:", (0,)),
    ]


@pytest.mark.parametrize(("weight", "notes"), [(0.5, 0), (None, 1)])
async def test_without_trust_the_next_drafts_start_afresh(weight, notes):
    """Nothing is admitted; what could not be weighed is said."""
    drafts = [draft_of(i, a, weight=weight) for i, a in enumerate("78")]
    step = make_step(drafts, distiller="trusted")
    assert await trusted(step) == [[]]
    assert len(step.notes) == notes


@given(given_drafts=weighed, size=st.integers(1, 90), kappa=st.integers(16, 200))
@pytest.mark.parametrize("distil", [evidence, contested, trusted, tail])
async def test_weighed_drafts_fit_kappa(distil, given_drafts, size, kappa):
    """Whatever is trusted, a workspace has no more tokens than it may."""
    drafts = [draft_of(i, a, weight=w) for i, (a, w) in enumerate(given_drafts)]
    for draft in drafts:
        draft["solution"] = "word " * size
    step = make_step(drafts, distiller=distil.__name__, kappa=kappa)
    for entries in await distil(step):
        assert (await pack(entries, kappa, step.counter))["tokens"] <= kappa


async def test_evidence_states_answers_with_their_votes():
    """The strongest first; each once, with its best solution."""
    drafts = [draft_of(i, a, logprob=-float(i)) for i, a in enumerate(["8", "7", "7", None])]
    (entries,) = await evidence(make_step(drafts, distiller="evidence"))
    assert [entry.title for entry in entries] == [
        "The answer 7, reached by 2 of 4 attempts:",
        "The answer 8, reached by 1 of 4 attempts:",
    ]
    assert [entry.sources for entry in entries] == [(1,), (0,)]


async def test_evidence_states_weights_and_leaves_out_what_is_rare():
    """While one answer has a clear plurality."""
    drafts = [draft_of(i, a, weight=w) for i, (a, w) in enumerate([("7", 0.9), ("8", 0.1)])]
    (entries,) = await evidence(make_step(drafts, distiller="evidence"))
    assert [e.title for e in entries] == [
        "The answer 7, reached by 1 of 2 attempts, weight 0.90 of 1:"
    ]


async def test_evidence_fills_kappa_with_whole_solutions():
    """What does not fit whole is left out, but never the first."""
    drafts = [make_draft(i, str(i), solution="word " * 40) for i in range(4)]
    (entries,) = await evidence(make_step(drafts, distiller="evidence", kappa=220))
    assert 1 < len(entries) < 4
    (entries,) = await evidence(make_step(drafts, distiller="evidence", kappa=16))
    assert len(entries) == 1


async def test_contested_shows_the_answers_ahead_without_votes():
    """At least two, at most k, each once."""
    drafts = drafts_with("7", "7", "7", "8", "8", "9")
    for k, shown in ((1, {"7", "8"}), (3, {"7", "8", "9"})):
        (entries,) = await contested(make_step(drafts, distiller="contested", k=k))
        assert {entry.keep.removeprefix("Final answer: ") for entry in entries} == shown
        assert not any("of 6" in entry.title for entry in entries)


async def test_tail_keeps_the_ends():
    """Where a solution states its result."""
    drafts = [make_draft(i, "4", solution="start " + "word " * 200 + "end") for i in range(3)]
    step = make_step(drafts, distiller="tail", kappa=120)
    step.counter.length = num_words
    (entries,) = await tail(step)
    assert all(entry.text.endswith("end") and "start" not in entry.text for entry in entries)
    assert (await pack(entries, 120, step.counter))["tokens"] <= 120


# ------------------------------------------------------------------------------ asking for signals


async def test_log_probabilities_reach_the_vote():
    """A refinement that the model is sure of decides a tie against an unknown draft."""
    drafts = [draft_of(0, "7", logprob=-1.0), draft_of(1, "8", logprob=-2.0)]
    step = make_step(drafts, [told("\\boxed{8}", -0.5, -0.1)], finish="guarded")
    assert (await guarded(step))["answer"] == "8"


async def test_a_tie_that_nothing_breaks_is_said():
    """Where the server tells no log-probabilities."""
    step = make_step(drafts_with("7", "8"), finish="weighted_vote")
    await weighted_vote(step)
    assert step.notes == [
        "the server tells no log-probabilities, so a tie goes to the first answer"
    ]


async def drafts_of(client, **fields):
    """Run the preset whose vote weighs drafts; return the drafts of the last round."""
    config = preset("vote_first", widths=(2,), seed=1, max_tokens=64, **fields)
    graph = build_graph(client)
    return (await graph.ainvoke({"problem": "2 + 2?"}, context=config))["drafts"]


@pytest.mark.parametrize("streamed", [False, True])
async def test_signals_are_asked_for_and_kept(connect, mock, streamed):
    """Over HTTP; by the parts that use them, and no others."""
    client = connect(streamed=streamed)
    for draft in await drafts_of(client):
        assert sorted(draft["signals"]) == ["logprob", "logprob_tail", "logprob_window"]
        assert draft["signals"]["logprob"] < 0
    assert "signals" not in (await drafts_of(client, finish="vote", distiller="none"))[0]
    asked = [call["body"].get("logprobs") for call in mock.requests()]
    assert asked == [True, True, None, None]


async def test_a_server_that_refuses_log_probabilities_is_not_asked_again(connect, mock):
    """The run goes on without them; its ledger counts the calls that were refused."""
    words = {"error": {"message": "logprobs is not supported by this model", "code": 400}}
    mock.configure(status=[{"match": {"asks_for": "logprobs"}, "status": 400, "body": words}])
    client = connect()
    assert all("signals" not in draft for draft in await drafts_of(client))
    before = len(mock.requests())
    assert all(draft["error"] is None for draft in await drafts_of(client))
    assert [call["body"].get("logprobs") for call in mock.requests()[before:]] == [None, None]
