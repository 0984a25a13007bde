"""Embedded and resumed: the right answer to the right question, no call twice, an exact ledger."""

import pytest

from tests.embed.stops import Trial, at_every_point
from tests.embed.trials import PARENTS

TABLE = {
    "root": "cancel cancel-late:resume refuse drain kill:none,new ask before:none,new after:resume",
    "graph-node": "cancel refuse:new ask",
    "node": "cancel cancel-late:none refuse drain ask before",
    "between": "cancel",
    "tool": "cancel refuse:none drain:new kill:none ask",
    "tools": "cancel refuse drain:none ask:none",
}
"""The stops of each parent, with the ways that go on from it; all of them where none is named. What
is left out comes to another parent of the table in the same way."""
CELLS = [
    (parent, stop, way)
    for parent, stops in TABLE.items()
    for stop, _, ways in (each.partition(":") for each in stops.split())
    for way in (ways.split(",") if ways else ("none", "resume", "new"))
    if way != "resume" or PARENTS[parent].is_ours  # `resume` leaves a graph around ours alone
]


@pytest.mark.parametrize(("parent", "stop", "way"), CELLS)
async def test_stopped_anywhere_a_parent_goes_on_right(parent, stop, way):
    """At every point: right answers, no finished call again, the ledger is the endpoint's count."""
    await at_every_point(PARENTS[parent], stop, way)


async def test_a_state_edited_at_any_step_goes_on():
    """Whoever edits names no step that wrote it: the run goes on from there, and ends."""
    trial = Trial(PARENTS["root"])
    await trial.ask()
    graph = trial.graph()
    past = [each async for each in graph.aget_state_history(trial.run)]
    for step in (each for each in past if each.next and "notes" in each.values):
        place = await graph.aupdate_state(step.config, {"notes": ["edited"]})
        state = await graph.ainvoke(None, place)
        assert state["phase"] == "done", step.next
        assert trial.parent.answers(state, trial.names) == {"ALPHA": "ALPHA"}


@pytest.mark.parametrize("stop", ["cancel", "refuse", "drain"])
async def test_a_new_question_that_halts_before_its_first_step_is_a_new_run(stop):
    """A breakpoint, a kill, a cancelled task: None then opens the run that was asked for."""
    await at_every_point(PARENTS["root"], stop, "new-halted")


@pytest.mark.parametrize("parent", ["node", "tools"])
async def test_a_parents_ledger_has_what_a_killed_run_had_stored(parent):
    """A new question puts an end to it, and nothing else would ever say what it has cost."""
    await at_every_point(PARENTS[parent], "kill", "new")
