"""What a run reports while it runs."""

import asyncio
from typing import get_args, get_type_hints

import pytest
from langgraph.config import get_stream_writer
from pydantic import TypeAdapter

from pdr_graph import Extensions, Parts, preset, solve
from pdr_graph.events import RunEvent, is_event
from pdr_graph.llm.client import Sampling
from pdr_graph.llm.usage import Spent
from pdr_graph.types import Verdict
from tests.fakes import ScriptedChat

KINDS = {
    name: kind for kind in get_args(RunEvent) for name in get_args(get_type_hints(kind)["event"])
}


async def events_of(model, config, **parts) -> list[dict]:
    events: list[dict] = []
    await solve("x", config, model=model, parts=Parts(on_event=events.append, **parts))
    return events


async def test_a_run_tells_every_step(mock, connect):
    """Each draft, workspace, solution and verdict is an event, in the order in which they come."""
    events = await events_of(connect(), preset("pdr", widths=(2, 1)))
    assert [event["event"] for event in events] == [
        *("round", "draft", "draft", "workspace"),
        *("round", "draft", "workspace"),
        *("finish", "solution", "verdict"),
    ]


async def test_events_are_of_their_types(mock, connect):
    """No field more or less than the type says, whatever happens in the run."""
    mock.configure(status=[{"match": {"call": 2}, "status": 400}])
    told = await events_of(
        connect(), preset("pdr", widths=(2, 1), verifier="judge"), stream_answer=True
    )
    agreeing = preset("pdr", widths=(2, 1), stop_on_consensus=1.0)
    told += await events_of(ScriptedChat(replies=["It is \\boxed{4}."]), agreeing)
    assert {event["event"] for event in told} == KINDS.keys()
    for event in told:
        kind = KINDS[event["event"]]
        TypeAdapter(kind).validate_python(event, strict=True)
        assert event.keys() == get_type_hints(kind).keys()
        assert is_event(event)


@pytest.mark.parametrize("written", [{"mine": 1}, {"event": "mine"}, "text"])
async def test_a_step_of_the_users_own_may_write_anything(written, caplog):
    """It is passed on unchanged, and the run goes on."""

    async def shout(step):
        get_stream_writer()(written)
        return Verdict(verifier="shout", accepted=None, reason="")

    caplog.set_level("INFO", "pdr_graph.run")
    events = await events_of(
        ScriptedChat(replies=["It is \\boxed{4}."]),
        preset("long_cot", verifier="shout"),
        extensions=Extensions(verifiers={"shout": shout}),
    )
    assert written in events
    assert not is_event(written)
    assert "run.end" in caplog.text


SMALL = {"widths": (2,), "seed": 7}


def chunks_of(events: list[dict], attempt: int = 1, part: str = "text") -> str:
    pieces = [e for e in events if e["event"] == "chunk" and e["attempt"] == attempt]
    return "".join(each[part] for each in pieces)


async def run(client, **fields):
    events: list[dict] = []
    parts = Parts(on_event=events.append, stream_answer=True)
    return await solve("x", preset("pdr", **SMALL, **fields), model=client, parts=parts), events


async def test_the_pieces_are_the_solution(mock, connect):
    """In order and whole, in several pieces, and the drafts are not streamed."""
    result, events = await run(connect())
    assert chunks_of(events) == result.solution
    assert len([each for each in events if each["event"] == "chunk"]) > 2
    streamed = [bool(each["body"].get("stream")) for each in mock.requests()]
    assert streamed == [False, False, False, True]


async def test_a_streamed_call_is_charged_like_a_plain_one(mock, connect):
    """Its usage comes in the last chunk, cached and reasoning tokens with it."""
    mock.configure(cached_tokens=3, reasoning="reasoning")
    config = preset("pdr", **SMALL)
    plain = await solve("x", config, model=connect())
    streamed, events = await run(connect())
    assert streamed.solution == plain.solution
    assert _counts(streamed) == _counts(plain)
    assert chunks_of(events, part="thought")
    everything = await solve("x", config, model=connect(streamed=True))
    assert _counts(everything) == _counts(plain)


async def test_a_stream_that_breaks_begins_anew(mock, connect):
    """The second attempt has a number of its own, and both are charged."""
    mock.configure(status=[{"match": {"call": 4}, "status": "drop", "after_chunks": 3}])
    result, events = await run(connect())
    assert 0 < len(chunks_of(events)) < len(result.solution)
    assert chunks_of(events, attempt=2) == result.solution
    assert result.ledger.to_json()["calls"] == 5


async def test_a_model_that_cannot_stream_answers_in_one_piece():
    """Any chat model will do."""
    result, events = await run(ScriptedChat(replies=["The answer is \\boxed{4}."]))
    assert chunks_of(events) == result.solution == "The answer is \\boxed{4}."


async def test_a_cancelled_stream_leaves_the_server(mock, connect):
    """Its request is ended there, and charged as an estimate."""
    mock.configure(stream_delay_s=0.2)
    spent = Spent()
    client = connect(streamed=True)
    call = asyncio.ensure_future(client.ask("x", Sampling(256, 1.0, 1.0, 1), spent))
    await mock.until(lambda stats: stats["in_flight"] == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await mock.until(lambda stats: stats["aborted"] == 1, timeout_s=2)
    assert (spent.aborted, spent.usage[0].estimated) == (1, True)


def _counts(result):
    return [{**row, "seconds": 0.0, "run": ""} for row in result.ledger.rows]
