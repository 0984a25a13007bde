"""The state's reducers and readings, and what it takes from LangGraph."""

from typing import TypedDict

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from pdr_graph.config import preset
from pdr_graph.graph import build_graph
from pdr_graph.state import (
    PDRState,
    merge_drafts,
    missing_drafts,
    more_drafts,
    next_width,
    read_shared,
    rounds_left,
    succeeded,
    values_at_rest,
)
from pdr_graph.types import Draft
from tests.fakes import ScriptedChat, make_draft


def draft_of(round_number: int, index: int, text: str = "") -> Draft:
    """Return a usable draft at a position."""
    return {**make_draft(index, text), "round": round_number}


def failed(draft: Draft) -> Draft:
    """Return the draft as one that came to nothing."""
    return {**draft, "error": "failed", "solution": ""}


def state_with(drafts: list[Draft], **fields: object) -> PDRState:
    """Return a state in the first of two rounds, of 3 and 2 drafts."""
    config = preset("pdr", widths=(3, 2)).model_dump(mode="json")
    state: PDRState = {"config": config, "round": 1, "drafts": drafts}
    return {**state, **fields}


positions = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4), st.text(max_size=2)))


@given(positions, positions)
def test_merging_keeps_one_draft_a_position_of_the_latest_round(old, new):
    """Nothing of an earlier round stays, and each index has the draft that came last."""
    merged = merge_drafts([draft_of(*each) for each in old], [draft_of(*each) for each in new])
    latest = max((each[0] for each in old + new), default=0)
    last = {index: text for number, index, text in old + new if number == latest}
    assert [(d["round"], d["index"], d["answer"]) for d in merged] == [
        (latest, index, last[index]) for index in sorted(last)
    ]


@given(st.lists(positions, max_size=4))
def test_merging_all_at_once_is_merging_one_after_another(updates):
    """A resumed round, whose drafts come in another grouping, ends with the same state."""
    one_by_one: list[Draft] = []
    for update in updates:
        one_by_one = merge_drafts(one_by_one, [draft_of(*each) for each in update])
    together = [draft_of(*each) for update in updates for each in update]
    assert one_by_one == merge_drafts([], together)


def test_a_round_owes_what_failed_or_never_came():
    """Only usable drafts count; those of another round do not."""
    state = state_with([draft_of(1, 0), failed(draft_of(1, 1))])
    assert succeeded(state) == [draft_of(1, 0)]
    assert [task["index"] for task in missing_drafts(state)] == [1, 2]


def test_what_is_still_to_come_is_told_by_the_widths():
    """After the first of the rounds 3, 2 there are one round, two drafts, two readers."""
    state = state_with([])
    assert (rounds_left(state), more_drafts(state), next_width(state)) == (1, 2, 2)
    state = state_with([], round=2)
    assert (rounds_left(state), more_drafts(state), next_width(state)) == (0, 0, 1)


async def test_a_task_that_was_sent_reads_what_its_siblings_share():
    """The private reader of LangGraph gives a `Send` the channels beside its own argument."""

    class Shared(TypedDict, total=False):
        problem: str
        workspaces: list[str]

    seen: list[tuple[object, object]] = []

    async def branch(task: dict[str, int]) -> dict[str, object]:
        seen.append((task, read_shared("problem", "workspaces")))
        return {}

    builder = StateGraph(Shared)
    builder.add_node("branch", branch)
    builder.add_conditional_edges(START, lambda _: [Send("branch", {"index": n}) for n in (0, 1)])
    builder.add_edge("branch", END)
    await builder.compile().ainvoke({"problem": "6 x 7", "workspaces": ["w"]})
    assert sorted(seen, key=str) == [
        ({"index": n}, {"problem": "6 x 7", "workspaces": ["w"]}) for n in (0, 1)
    ]


async def test_a_run_that_has_ended_is_read_without_its_graph():
    """Its checkpoint holds what the graph would read of it; any other says that it leads on."""
    saver = InMemorySaver()
    graph = build_graph(ScriptedChat(replies=[r"\boxed{42}"]), checkpointer=saver)
    place: RunnableConfig = {"configurable": {"thread_id": "one"}}
    config = preset("pdr", widths=(2,), distiller="top_k", verifier="consensus")
    await graph.ainvoke({"problem": "What is 6 x 7?"}, place, context=config)
    checkpoints = [each async for each in saver.alist(place)]
    read = [values_at_rest(each) for each in checkpoints]
    snapshots = [await graph.aget_state(each.config) for each in checkpoints]
    assert read == [None if each.next else each.values for each in snapshots]
    assert [values is None for values in read] == [False] + [True] * (len(read) - 1)


async def test_another_graph_is_never_read_as_a_run():
    """It may have ended and hold nothing but names of ours."""
    builder = StateGraph(TypedDict("Other", {"problem": str}))
    builder.add_node("only", lambda state: {"problem": "solved"})
    builder.add_edge(START, "only")
    saver = InMemorySaver()
    place: RunnableConfig = {"configurable": {"thread_id": "one"}}
    await builder.compile(checkpointer=saver).ainvoke({"problem": "x"}, place)
    saved = await saver.aget_tuple(place)
    assert saved is not None
    assert saved.checkpoint["channel_values"] == {"problem": "solved"}
    assert values_at_rest(saved) is None
