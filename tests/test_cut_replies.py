"""Replies that repeat themselves, and thoughts beyond their budget: what a run says of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pdr_graph import preset, solve
from pdr_graph.budget import Ledger, empty_row, merge_rows
from pdr_graph.cli.inspect import _flaw
from pdr_graph.llm.chat_vllm import LOOPS, ChatVLLM
from pdr_graph.llm.client import BLOCK, ModelClient, Sampling
from pdr_graph.llm.tokens import is_looping
from pdr_graph.llm.usage import Spent
from pdr_graph.run import Parts
from tests.fakes import ListTrace

PROBLEM = "What is 6 x 7?"
SMALL = {"max_tokens": 512, "kappa": 256, "solution_tokens": 256, "seed": 7}


def drawn(**fields) -> Sampling:
    return Sampling(**({"max_tokens": 256, "temperature": 0.7, "top_p": 0.9, "seed": 1} | fields))


def charged(result) -> tuple[int, int, int]:
    ledger = result.to_json()["ledger"]
    return ledger["calls"], ledger["prompt_tokens"], ledger["completion_tokens"]


# ------------------------------------------------------------------------------ loops

PROSE = (
    "First we add the odd terms, then the even ones; their sums differ by 50. Hence the total is "
    "twice the smaller sum plus 50, and since the smaller sum is 2500 we get 5050 in all. "
)


@pytest.mark.parametrize(
    "text",
    [
        "So " + "wait, " * 60,
        PROSE + "But wait, let me check that again. " * 10,
        PROSE + "x" * 300,
        PROSE + "0, " * 100 + "0",
        PROSE + "the same paragraph, said a third time. " * 3 + PROSE * 3,
        PROSE + "ab " * 16,
        PROSE * 3 + PROSE[:40],
    ],
)
def test_a_loop_is_known(text):
    """Words, sentences, letters and paragraphs, the last turn cut anywhere."""
    assert is_looping(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        PROSE,
        PROSE * 2,
        "wait, " * 60 + PROSE,
        "".join(f"Step {n}: we add {n}. " for n in range(60)),
        PROSE + "0 & 0 & 0 \\\\ 0 & 1 & 0 \\\\ 0 & 0 & 1",
        PROSE + "-" * 30,
        PROSE + "1000000000000000",
    ],
)
def test_what_goes_on_is_no_loop(text):
    """A text that came out of its loop, a count, a matrix, a line, a large number."""
    assert not is_looping(text)


@given(
    before=st.text(max_size=100),
    turn=st.text(min_size=1, max_size=60),
    turns=st.integers(8, 40),
    rest=st.integers(0, 59),
)
def test_every_loop_of_its_length_is_known(before, turn, turns, rest):
    """Whatever is repeated, and wherever the last turn was cut."""
    loop = turn * turns + turn[: rest % len(turn)]
    assert is_looping(before + loop) or len(loop) < 40


@pytest.mark.parametrize("text", ["a" * 8191 + "b", "ab" * 50_000 + "c", "a" * 100_000])
def test_looking_for_a_loop_is_quick(text):
    """Texts that are alike everywhere, and almost a loop."""
    is_looping(text)
    assert is_looping(text[:-1])


@pytest.mark.parametrize("way", ["plain", "streamed"])
async def test_a_loop_is_noticed_where_a_reply_is_cut(mock, connect, way):
    """A server that knows no loops spends all its tokens; the reason says what they went into."""
    mock.configure(loop="and so on ")
    spent = Spent()
    reply = await connect(streamed=way == "streamed").ask(PROBLEM, drawn(), spent)
    assert (reply.truncated, reply.finish_reason) == (True, "loop")
    assert spent.usage[0].completion == mock.stats()["completion_tokens"] == 256


async def test_a_loop_in_a_thought_is_noticed(mock, connect):
    """A thought that goes round leaves no solution."""
    loop = "<think>" + "wait, " * 100
    mock.configure(replies=[{"contains": "6 x 7", "content": loop}])
    reply = await connect().ask(PROBLEM, drawn(max_tokens=64), Spent())
    assert (reply.truncated, reply.finish_reason, reply.solution) == (True, "loop", "")


async def test_a_reply_that_ended_by_itself_is_no_loop(mock, connect):
    """Repeated or not: the model came to its end."""
    mock.configure(replies=[{"contains": "6 x 7", "content": "ha " * 60}])
    reply = await connect().ask(PROBLEM, drawn(), Spent())
    assert (reply.truncated, reply.finish_reason) == (False, "stop")


async def test_a_server_that_knows_loops_ends_them(mock):
    """It is asked to, spends less, and the ledger has what it spent."""
    mock.configure(loop="and so on ")
    model = ChatVLLM(base_url=mock.url, model="mock-model", repetition_detection=dict(LOOPS))
    spent = Spent()
    reply = await ModelClient(model).ask(PROBLEM, drawn(max_tokens=2000), spent)
    await model.aclose()
    assert mock.requests()[0]["body"]["repetition_detection"] == dict(LOOPS)
    assert (reply.truncated, reply.finish_reason) == (True, "loop")
    assert spent.usage[0].completion == mock.stats()["completion_tokens"] == 18 * LOOPS["min_count"]


async def test_a_run_tells_loops_from_limits(mock, connect):
    """Draft, solution and trace say it; every token is in the ledger."""
    mock.configure(loop="It is \\boxed{42}. ")
    trace = ListTrace()
    config = preset("pdr", widths=(2,), **SMALL)
    result = await solve(PROBLEM, config, model=connect(), parts=Parts(trace=trace))
    drafts = result.state["drafts"]
    assert all(draft["truncated"] and draft["loop"] for draft in drafts)
    assert result.state["solution"]["loop"] is True
    assert result.answer == "42"
    assert {record["finish_reason"] for record in trace.records} == {"loop"}
    stats = mock.stats()
    served = stats["calls"], stats["prompt_tokens"], stats["completion_tokens"]
    assert charged(result) == served


async def test_a_loop_without_a_solution_says_so(mock, connect):
    """The draft's sentence names the loop and not the limit."""
    loop = "<think>" + "wait, " * 400
    mock.configure(replies=[{"contains": "6 x 7", "content": loop}])
    events = []
    with pytest.raises(Exception, match="repeated itself before a solution"):
        await solve(
            PROBLEM,
            preset("pdr", widths=(2,), **SMALL),
            model=connect(),
            parts=Parts(on_event=events.append),
        )
    details = [event["detail"] for event in events if event["event"] == "draft"]
    assert details == ["the model repeated itself before a solution was begun"] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"truncated": True, "loop": True}, "cut in a loop"),
        ({"truncated": True}, "cut by max_tokens"),
        ({"truncated": False}, ""),
    ],
)
def test_inspect_tells_loops_from_limits(fields, words):
    """Drafts of older runs do not say it, and are shown as before."""
    draft = {"error": None, "detail": ""} | fields
    console = Console(width=80)
    with console.capture() as shown:
        console.print(_flaw(draft))
    assert shown.get().strip() == words


# ------------------------------------------------------------------------------ thoughts


@pytest.mark.parametrize(
    ("budget", "over"), [(None, 0), (100, 0), (40 - BLOCK, 0), (39 - BLOCK, 1), (0, 1)]
)
async def test_a_thought_beyond_its_budget_is_counted(mock, connect, budget, over):
    """By more than a block, in which the closing words of the thought find room."""
    mock.configure(reasoning="reasoning", reasoning_tokens=40, keeps_thinking_budget=False)
    spent = Spent()
    await connect().ask(PROBLEM, drawn(thinking_token_budget=budget), spent)
    assert spent.over_budget == over


async def test_a_server_that_keeps_the_budget_is_not_blamed(mock, connect):
    """As vLLM does, with a parser of reasoning."""
    mock.configure(reasoning="reasoning", reasoning_tokens=40)
    spent = Spent()
    await connect().ask(PROBLEM, drawn(thinking_token_budget=4), spent)
    assert (spent.over_budget, spent.usage[0].reasoning) == (0, 4)


@pytest.mark.parametrize(("budget", "over"), [(80, 0), (0, 1)])
async def test_a_thought_in_the_text_is_measured_too(mock, connect, budget, over):
    """A server that does not tell its tokens of reasoning has at least what the solution leaves."""
    mock.configure(reasoning="think_tags", reasoning_tokens=80, completion_tokens=120)
    spent = Spent()
    await connect().ask(PROBLEM, drawn(thinking_token_budget=budget), spent)
    assert spent.over_budget == over


@pytest.mark.parametrize("strategy", ["long_cot", "pdr"])
async def test_a_run_notes_once_that_the_budget_is_not_kept(mock, connect, strategy):
    """However many calls it befell; the ledger has their number."""
    mock.configure(reasoning="reasoning", reasoning_tokens=40, keeps_thinking_budget=False)
    widths = {} if strategy == "long_cot" else {"widths": (3, 2)}
    config = preset(strategy, thinking_token_budget=8, **widths, **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    ledger = result.to_json()["ledger"]
    calls = ledger["calls"]
    assert result.ledger.over_budget == ledger["over_thinking_budget"] == calls
    number = "1 call" if calls == 1 else f"{calls} calls"
    assert [note for note in result.notes if "thinking_token_budget" in note] == [
        f"the server does not keep thinking_token_budget 8: {number} thought longer; vLLM needs "
        "--reasoning-parser for it"
    ]


async def test_a_run_within_its_budget_notes_nothing(mock, connect):
    """Nor does its ledger name it."""
    mock.configure(reasoning="reasoning", reasoning_tokens=40)
    config = preset("pdr", widths=(2,), thinking_token_budget=8, **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    assert not any("thinking_token_budget" in note for note in result.notes)
    assert "over_thinking_budget" not in result.to_json()["ledger"]


def test_rows_of_older_runs_merge_with_new_ones():
    """They do not have the count."""
    old, new = empty_row(1, "drafter", 1), empty_row(1, "drafter", 1)
    new["over_budget"] = 2
    assert Ledger(tuple(merge_rows([old], [new]))).over_budget == 2
    assert Ledger(tuple(merge_rows([new], [new]))).over_budget == 4
    del old["over_budget"]
    assert Ledger(tuple(merge_rows([old], [new]))).over_budget == 2
