"""What a run tells of itself while it goes on."""

from typing import get_args, get_type_hints

import pytest
from langgraph.config import get_stream_writer
from pydantic import TypeAdapter

from pdr_graph import Extensions, Parts, preset, solve
from pdr_graph.events import RunEvent, is_event
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
    """It is handed on as it is, and stops nobody who listens."""

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
