"""A round goes on when a quorum of its drafts is in; the others are cut."""

import asyncio
import gc
from collections.abc import Awaitable
from typing import TypeVar

import pytest

from pdr_graph.extensions import Extensions
from pdr_graph.llm.models import Models
from pdr_graph.nodes.drafter import Drafter, Gate
from pdr_graph.nodes.toolbox import Toolbox
from pdr_graph.prompts import Prompts

T = TypeVar("T")


async def slow(ended: list[str] | None = None) -> str:
    """Work for longer than any test; says when its clean-up is done."""
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.01)  # as closing a connection takes a moment
        if ended is not None:
            ended.append("ended")
    return "late"


async def soon(work: Awaitable[T]) -> T:
    """Wait for what a gate that works ends at once."""
    return await asyncio.wait_for(work, 2)


async def quick() -> str:
    await asyncio.sleep(0)
    return "done"


async def test_work_that_ends_first_is_returned():
    """A gate that stays shut changes nothing."""
    assert await soon(Gate(1).race(quick())) == "done"


async def test_an_error_of_the_work_is_raised_as_it_is():
    """A failed draft is the drafter's business, not the gate's."""

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await soon(Gate(1).race(fail()))


async def test_the_gate_opens_at_the_quorum_and_not_before():
    """Three drafts needed: after two the others go on, after three they are cut."""
    gate, ended = Gate(3), []
    race = asyncio.ensure_future(gate.race(slow(ended)))
    for _ in range(2):
        gate.arrived()
    await asyncio.sleep(0.02)
    assert not race.done()
    gate.arrived()
    assert await soon(race) is None


async def test_work_that_is_cut_has_ended_when_the_race_is_over():
    """Its request is closed and charged before the drafter writes its row."""
    gate, ended = Gate(1), []
    race = asyncio.ensure_future(gate.race(slow(ended)))
    await asyncio.sleep(0)
    gate.arrived()
    assert await soon(race) is None
    assert ended == ["ended"]


async def test_all_losers_are_cut_at_once():
    """The quorum cuts every straggler of the round, however many there are."""
    gate, ended = Gate(1), []
    races = [asyncio.ensure_future(gate.race(slow(ended))) for _ in range(15)]
    await asyncio.sleep(0)
    gate.arrived()
    assert await soon(asyncio.gather(*races)) == [None] * 15
    assert len(ended) == 15


async def test_a_draft_that_comes_after_the_quorum_is_cut():
    """One that waited for its turn does not start a long call any more."""
    gate, ended = Gate(1), []
    gate.arrived()
    assert await soon(gate.race(slow(ended))) is None


async def test_cancelling_the_race_cancels_the_work_and_waits_for_it():
    """A run that is stopped leaves no request behind, and stays cancelled."""
    gate, ended = Gate(1), []
    race = asyncio.ensure_future(gate.race(slow(ended)))
    await asyncio.sleep(0.01)
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(race)
    assert ended == ["ended"]


async def test_no_task_is_left_behind():
    """Neither the work nor the waiting for the gate outlives the race."""
    before = asyncio.all_tasks()
    gate = Gate(2)
    await soon(gate.race(quick()))
    race = asyncio.ensure_future(gate.race(slow()))
    await asyncio.sleep(0)
    gate.arrived()
    gate.arrived()
    await soon(race)
    assert asyncio.all_tasks() == before


async def test_a_gate_goes_with_its_last_draft(mock, connect):
    """A process that serves runs for weeks keeps no gates of finished rounds."""
    toolbox = Toolbox(Models.of(connect()), Extensions(), Prompts.load(), None, stream_answer=False)
    gates = Drafter(toolbox).gates
    gate = gates.setdefault(("run", "", 1), Gate(1))
    assert gates.setdefault(("run", "", 1), Gate(1)) is gate
    del gate
    gc.collect()
    assert dict(gates) == {}
