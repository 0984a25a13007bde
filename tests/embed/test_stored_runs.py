"""Runs that an earlier version stored, in `stored_runs.json.gz`, go on as runs of this one do.

Commit 69def69 wrote them, with the model, questions and config of `trials.py`. Recorded is the last
checkpoint of each place, as `InMemorySaver` keeps it.
"""

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from pdr_graph import build_graph, pdr_node, resume
from tests.embed.trials import (
    FIRST,
    FIRST_CALLS,
    OTHER,
    OTHER_CALLS,
    Charged,
    Oracle,
    answer_in,
    client_of,
    question,
)

DONE = {"done": FIRST_CALLS, "mid-round": 1, "second-round": 3, "below-quorum": 2}
"""Calls that a stored run had made and not lost, failed ones included."""
FAILED = {"below-quorum": 2}


def stored_runs() -> InMemorySaver:
    """Return a store with the recorded runs."""
    saver = InMemorySaver()
    recorded = gzip.decompress((Path(__file__).parent / "stored_runs.json.gz").read_bytes())
    for each in json.loads(recorded):
        thread, namespace, number = each["thread"], each["namespace"], each["id"]
        saver.storage[thread][namespace][number] = (
            _typed(each["checkpoint"]),
            _typed(each["metadata"]),
            None,
        )
        for channel, version, value in each["blobs"]:
            saver.blobs[thread, namespace, channel, version] = _typed(value)
        for task, index, owner, channel, value, path in each["writes"]:
            written = (owner, channel, _typed(value), path)
            saver.writes[thread, namespace, number][task, index] = written
    return saver


def _typed(value: list[str]) -> tuple[str, bytes]:
    return value[0], base64.b64decode(value[1])


def charged(state: dict[str, Any]) -> int:
    """Return how many calls the ledger has."""
    return sum(row["calls"] for row in state["ledger"])


@pytest.mark.parametrize("way", ["none", "resume"])
@pytest.mark.parametrize("thread", DONE)
async def test_an_earlier_run_goes_on_where_it_was(thread, way):
    """No finished call is made again."""
    saver, oracle = stored_runs(), Oracle()
    if way == "none":
        graph = build_graph(client_of(oracle), checkpointer=saver)
        state = await graph.ainvoke(None, {"configurable": {"thread_id": thread}})
    else:
        result = await resume(thread, model=client_of(oracle), checkpointer=saver)
        state = dict(result.state)
    assert answer_in(state["solution"]["text"]) == "ALPHA"
    assert oracle.num_calls == FIRST_CALLS - DONE[thread] + FAILED.get(thread, 0)
    assert charged(state) == FIRST_CALLS + FAILED.get(thread, 0)


@pytest.mark.parametrize("thread", DONE)
async def test_a_new_question_ends_an_earlier_run(thread):
    """Its cost is one row of the new run's ledger."""
    oracle = Oracle()
    graph = build_graph(client_of(oracle), default=OTHER, checkpointer=stored_runs())
    entry = {"problem": question("BETA"), "config": OTHER.model_dump(mode="json")}
    state = await graph.ainvoke(entry, {"configurable": {"thread_id": thread}})
    assert answer_in(state["solution"]["text"]) == "BETA"
    assert oracle.num_calls == OTHER_CALLS
    abandoned = 0 if thread == "done" else DONE[thread]
    assert charged(state) == OTHER_CALLS + abandoned


@pytest.mark.parametrize(("name", "calls"), [(None, FIRST_CALLS - 3), ("BETA", FIRST_CALLS)])
async def test_a_parent_with_an_earlier_run_goes_on(name, calls):
    """None continues the run in its node, and a new message opens another."""
    oracle = Oracle()
    builder = StateGraph(Charged)
    builder.add_node("reason", pdr_node(FIRST, model=client_of(oracle)))
    builder.add_edge(START, "reason")
    graph = builder.compile(checkpointer=stored_runs())
    entry = None if name is None else {"messages": [("user", question(name))]}
    state = await graph.ainvoke(entry, {"configurable": {"thread_id": "node"}})
    assert answer_in(state["messages"][-1].text) == (name or "ALPHA")
    assert oracle.num_calls == calls
    assert charged(state) == FIRST_CALLS
