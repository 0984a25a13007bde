"""What a model says of drafts by the likelihood of one token, and who uses it."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from pydantic import Field

from pdr_graph import build_graph, preset
from pdr_graph.ballot import add_votes, ranked
from pdr_graph.budget import Ledger
from pdr_graph.errors import CallError, ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.finish import pairwise_vote, weighted_vote
from pdr_graph.judge import Evidence, UnweighedError, load_judge
from pdr_graph.judge.adapter import AdapterJudge
from pdr_graph.llm.client import ModelClient, Reply, read_alternatives
from pdr_graph.llm.usage import Spent, Usage
from pdr_graph.self_check import NO, YES, chance_of, preference, self_check
from pdr_graph.train.recorder import role_of
from tests.fakes import NO_WAIT, PROMPTS, ScriptedChat, drafts_with, make_draft, make_step
from tests.test_ballot import draft_of, weighed

QUESTION = PROMPTS.templates["self_check"]


class ChoosingChat(ScriptedChat):
    """Tells the likelihoods of A and B: how much it likes a text, and the place A."""

    logprobs: bool | None = None
    top_logprobs: int | None = None
    likes: dict[str, float] = Field(default_factory=dict)
    """Log-odds of a solution that has this text, against one that has none of them."""
    prefers_first: float = 0.0

    def _reply(self, prompt: str) -> AIMessage:
        first, second = (
            prompt.partition(f"<solution {place}>")[2].partition(f"</solution {place}>")[0]
            for place in "AB"
        )
        odds = self.prefers_first
        odds += sum(much for text, much in self.likes.items() if text in first)
        odds -= sum(much for text, much in self.likes.items() if text in second)
        return choosing({"A": -math.log1p(math.exp(-odds)), "B": -math.log1p(math.exp(odds))})

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.replies = [self._reply(messages[0].text)] * (len(self.prompts) + 1)
        return super()._generate(messages, stop, run_manager, **kwargs)


def choosing(likely: Mapping[str, float]) -> AIMessage:
    """Return a reply of one token, with the alternatives at its place."""
    top = [{"token": token, "logprob": p} for token, p in likely.items()]
    row = {**top[0], "top_logprobs": top}
    return AIMessage(top[0]["token"], response_metadata={"logprobs": {"content": [row]}})


def client_of(**fields: object) -> ModelClient:
    return ModelClient(ChoosingChat(**fields), retry=NO_WAIT)


def reply_of(**likely: float) -> Reply:
    return Reply("", "", False, "stop", Usage(), 0.0, alternatives=[list(likely.items())])


# ------------------------------------------------------------------------------ one token


@pytest.mark.parametrize(
    ("likely", "chance"),
    [
        ({"Yes": 0.6, "No": 0.2}, 0.75),
        ({"Yes": 0.3, " yes": 0.2, "\u0120YES": 0.1, "No": 0.2, "Maybe": 0.2}, 0.75),
        ({"No": 0.9}, 0.0),
        ({"**Yes": 0.1}, 1.0),
        ({"The": 0.9, "Yesterday": 0.1}, None),
        ({}, None),
    ],
)
def test_a_chance_is_a_share_of_both_answers(likely, chance):
    """Whatever blanks and marks the tokens have; other words are no answer."""
    reply = reply_of(**{token: math.log(p) for token, p in likely.items()})
    assert chance_of(reply, YES, NO) == (None if chance is None else pytest.approx(chance))


@pytest.mark.parametrize(
    "told",
    [None, 3, {"content": None}, {"content": [None]}, {"content": [{"token": "Yes"}]}]
    + [{"content": [{"top_logprobs": each}]} for each in (None, 3, [None], [{"token": "Yes"}])]
    + [{"content": [{"top_logprobs": [{"token": 3, "logprob": -1}]}]}]
    + [{"content": [{"top_logprobs": [{"token": "Yes", "logprob": math.nan}]}]}],
)
def test_what_is_no_likelihood_was_not_sent(told):
    """Servers send what they like."""
    found = read_alternatives(AIMessage("Yes", response_metadata={"logprobs": told}))
    assert not any(found)


def test_the_drawn_token_is_an_alternative_too():
    """Even if it is none of the likeliest."""
    row = {"token": "No", "logprob": -3.0, "top_logprobs": [{"token": "Yes", "logprob": 0.1}]}
    message = AIMessage("No", response_metadata={"logprobs": {"content": [row]}})
    assert read_alternatives(message) == [[("Yes", 0.0), ("No", -3.0)]]


# ------------------------------------------------------------------------------ self-check


async def test_a_self_check_is_one_token_that_the_ledger_knows(connect, mock):
    """Problem, solution and question; the likelihood is that of the first token."""
    top = {"Yes": math.log(0.6), "No": math.log(0.2)}
    mock.configure(replies=[{"contains": "Is this solution", "content": "Yes", "top": top}])
    spent = Spent()
    said = await self_check(connect(), QUESTION, "2 + 2?", "It is $4.", spent)
    assert said == pytest.approx(0.75)
    (row,) = mock.requests()
    assert row["body"]["messages"][0]["content"] == (
        "2 + 2?\n\nA solution of the task above follows.\n\nIt is $4.\n\n"
        "Is this solution correct? Answer Yes or No."
    )
    asked = {name: row["body"][name] for name in ("max_tokens", "temperature", "top_logprobs")}
    assert asked == {"max_tokens": 1, "temperature": 1.0, "top_logprobs": 20}
    assert (spent.requests, spent.nominal) == (1, 1)
    assert spent.total == mock.stats()["prompt_tokens"] + 1


@pytest.mark.parametrize("ignores", [True, False])
async def test_a_server_without_likelihoods_is_asked_once(connect, mock, ignores):
    """Whether it refuses them or leaves them out; log-probabilities of drafts are still asked."""
    refusal = {"match": {"asks_for": "top_logprobs"}, "status": 400, "body": "no top_logprobs here"}
    mock.configure(**({"tells_alternatives": False} if ignores else {"status": [refusal]}))
    client, spent = connect(), Spent()
    if ignores:
        assert await self_check(client, QUESTION, "2 + 2?", "4", spent) is None
    else:
        with pytest.raises(CallError):
            await self_check(client, QUESTION, "2 + 2?", "4", spent)
    assert await self_check(client, QUESTION, "2 + 2?", "4", spent) is None
    assert len(mock.requests()) == spent.requests == 1
    assert client.lacks_alternatives
    assert not client.lacks_logprobs


async def test_a_model_without_such_an_option_is_not_asked():
    """Other providers' classes would refuse the parameter."""
    client = ModelClient(ScriptedChat(replies=["Yes"]))
    assert await self_check(client, QUESTION, "2 + 2?", "4", Spent()) is None
    assert client.model.prompts == []


# ------------------------------------------------------------------------------ preference


@given(
    st.dictionaries(st.sampled_from("pqr"), st.floats(-5, 5)),
    st.floats(-8, 8),
    st.sampled_from("pqr"),
    st.sampled_from("pqr"),
)
async def test_the_order_of_two_solutions_does_not_matter(likes, prefers_first, first, second):
    """However much the model prefers a place; of two alike, neither is preferred."""
    step = make_step(client=client_of(likes=likes, prefers_first=prefers_first))
    one = await preference(step.ask, "2 + 2?", first, second)
    other = await preference(step.ask, "2 + 2?", second, first)
    assert one + other == pytest.approx(1)
    if first == second:
        assert one == pytest.approx(0.5)
    elif likes.get(first, 0) > likes.get(second, 0) + 0.01:
        assert one > 0.5


async def test_both_orders_are_asked_at_once_and_paid_for(connect, mock):
    """In the ledger to the token; the longer of the two is on the critical path."""
    top = {"A": math.log(0.9), "B": math.log(0.1)}
    mock.configure(replies=[{"contains": "Answer A or B", "content": "A", "top": top}])
    step = make_step(drafts_with("7", "8"), client=connect(), finish="pairwise_vote")
    assert await preference(step.ask, step.problem, "It is 7.", "It is 8.") == pytest.approx(0.5)
    row, stats = step.ask.meter.row(), mock.stats()
    assert row["calls"] == stats["calls"] == 2
    assert row["prompt_tokens"] == stats["prompt_tokens"]
    assert row["completion_tokens"] == stats["completion_tokens"] == 2
    assert row["critical_tokens"] == stats["prompt_tokens"] // 2 + 1
    assert row["nominal_tokens"] == 2
    first, second = (each["body"]["messages"][0]["content"] for each in mock.requests())
    assert first.index("It is 7.") < first.index("It is 8.")
    assert second.index("It is 8.") < second.index("It is 7.")


# ------------------------------------------------------------------------------ pairwise vote


async def test_a_tie_goes_to_the_draft_that_is_preferred():
    """Not to the first one, nor to a place."""
    drafts = drafts_with("7", "8", "9", "8", "7")
    client = client_of(likes={"\\boxed{8}": 2.0}, prefers_first=5.0)
    step = make_step(drafts, client=client, finish="pairwise_vote")
    solution = await pairwise_vote(step)
    assert (solution["answer"], solution["finish"]) == ("8", "pairwise_vote")
    assert len(client.model.prompts) == 2


@pytest.mark.parametrize("drafts", [("7", "7", "8"), ("7",), (None,), ("7", "7")])
async def test_where_nothing_is_contested_nothing_is_asked(drafts):
    """The vote is handed in, under the finish's own name."""
    client = client_of(likes={"\\boxed{8}": 9.0})
    step = make_step(drafts_with(*drafts), client=client, finish="pairwise_vote")
    solution = await pairwise_vote(step)
    assert client.model.prompts == []
    assert solution["finish"] == "pairwise_vote"
    assert solution["answer"] == drafts[0]


async def test_a_comparison_that_cannot_be_made_leaves_the_vote():
    """And says why."""
    step = make_step(drafts_with("7", "8"), ["A"], finish="pairwise_vote")
    assert (await pairwise_vote(step))["answer"] == "7"
    assert "could not be compared" in step.notes[0]


@given(weighed, st.floats(-5, 5))
async def test_no_answer_with_fewer_votes_and_less_weight_wins(given_drafts, like):
    """Whatever the model prefers."""
    drafts = [draft_of(i, answer, weight=w) for i, (answer, w) in enumerate(given_drafts)]
    client = client_of(likes={"\\boxed{1}": like})
    step = make_step(drafts, client=client, finish="pairwise_vote")
    chosen = (await pairwise_vote(step))["answer"]
    plain = (await weighted_vote(make_step(drafts, finish="weighted_vote")))["answer"]
    if chosen == plain:
        return
    found = {
        vote["answer"]: (vote["count"], weight)
        for vote, weight in ranked(await add_votes(step.answers, None, drafts))
    }
    assert found[chosen][0] >= found[plain][0]
    assert found[chosen][1] + 1 > found[plain][1]


async def test_a_run_may_end_in_a_comparison(connect, mock):
    """Its calls are in the ledger to the token, as a step of the finish."""
    top = {"A": math.log(0.5), "B": math.log(0.5)}
    mock.configure(
        replies=[{"contains": "Answer A or B", "content": "A", "top": top}],
        answers=["7", "8"],
    )
    graph = build_graph(connect())
    config = preset("majority", widths=(2,), finish="pairwise_vote", max_tokens=64)
    for seed in range(9):
        mock.reset()
        mock.configure(
            replies=[{"contains": "Answer A or B", "content": "A", "top": top}],
            answers=["7", "8"],
        )
        state = await graph.ainvoke(
            {"problem": "2 + 2?"}, context=config.model_copy(update={"seed": seed})
        )
        stats, total = mock.stats(), Ledger(tuple(state["ledger"])).total()
        assert total["calls"] == stats["calls"]
        assert total["prompt_tokens"] == stats["prompt_tokens"]
        assert total["completion_tokens"] == stats["completion_tokens"]
        if stats["calls"] == 4:
            return
    raise AssertionError("no seed gives two different answers")


# ------------------------------------------------------------------------------ an adapter


def adapter_of(**fields: object) -> AdapterJudge:
    plain = {"model": "mock-model", "adapter": "judge", "question": QUESTION}
    return AdapterJudge(**{**plain, "scale": 1.0, "shift": 0.0, **fields})


def serve(mock, chance: float = 0.75, **rules: object) -> None:
    """Serve an adapter beside the model; it says yes with this chance."""
    top = {"Yes": math.log(chance), "No": math.log(1 - chance)}
    judged = {"contains": "Is this solution correct?", "content": "Yes", "top": top}
    mock.configure(**{"model": ["mock-model", "judge"], "replies": [judged], **rules})


async def test_an_adapter_weighs_by_its_likelihood(connect, mock):
    """Of the name under which the same server serves it; calibrated, and paid for."""
    serve(mock)
    evidence = Evidence("2 + 2?", "a prompt", connect())
    weight = await adapter_of(scale=2.0, shift=-1.0).weigh(make_draft(0, "4"), evidence)
    assert weight == pytest.approx(1 / (1 + math.exp(1 - 2 * math.log(3))))
    (row,) = mock.requests()
    assert row["body"]["model"] == "judge"
    assert evidence.spent.total == row["prompt_tokens"] + 1


async def test_a_run_is_judged_by_an_adapter(connect, mock):
    """The drafts keep their weights, and the ledger what they cost."""
    serve(mock)
    graph = build_graph(connect(), extensions=Extensions(judge=adapter_of()))
    config = preset("vote_first", widths=(3,), seed=1, max_tokens=64)
    state = await graph.ainvoke({"problem": "2 + 2?"}, context=config)
    assert [draft["weight"] for draft in state["drafts"]] == pytest.approx([0.75] * 3)
    stats, total = mock.stats(), Ledger(tuple(state["ledger"])).total()
    assert total["calls"] == stats["calls"] == 6
    assert total["prompt_tokens"] == stats["prompt_tokens"]
    assert total["completion_tokens"] == stats["completion_tokens"]


async def test_a_server_without_the_adapter_is_told_at_the_door(connect, mock):
    """With the command that serves it; a run that goes on all the same says it too."""
    client = connect()
    with pytest.raises(ConfigError, match=r"it serves: mock-model; .*--lora-modules judge="):
        await adapter_of().meet(client)
    assert mock.requests() == []
    with pytest.raises(UnweighedError, match=r"no model named 'judge'; .*--enable-lora"):
        await adapter_of().weigh(make_draft(0, "4"), Evidence("2 + 2?", "", client))
    serve(mock)
    await adapter_of().meet(client)


async def test_an_adapter_that_says_neither_weighs_nothing(connect, mock):
    """It is not the one that was fitted, or the server tells too little."""
    serve(mock, replies=[])
    evidence = Evidence("2 + 2?", "", connect())
    with pytest.raises(UnweighedError, match="neither yes nor no"):
        await adapter_of().weigh(make_draft(0, "4"), evidence)
    mock.configure(tells_alternatives=False)
    with pytest.raises(UnweighedError, match="likeliest tokens"):
        await adapter_of().weigh(make_draft(0, "4"), evidence)


def test_an_adapter_judge_is_read_as_it_was_written(tmp_path):
    """Numbers and texts alone; one of another model is refused."""
    judge = adapter_of(scale=1.5)
    judge.save(tmp_path / "judge.json")
    read = load_judge(tmp_path / "judge.json")
    assert read == judge
    with pytest.raises(ConfigError, match="fitted on drafts of 'mock-model'"):
        read.check("other")


def test_choices_are_no_replies_to_learn_from():
    """`train-data` takes what a model wrote, not what it chose."""
    record = {"node": "drafter", "template": "self_check"}
    assert role_of(record) == "judge"
