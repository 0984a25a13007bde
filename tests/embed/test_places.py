"""Each run has a place of its own, and finds it again: by hand, beside others, or shared."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph._internal._constants import NULL_TASK_ID
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.runtime import Runtime
from langgraph.types import CachePolicy, Command, RetryPolicy, interrupt
from pydantic import BaseModel
from typing_extensions import TypedDict

from pdr_graph import Extensions, PDRConfig, as_tool, build_graph, pdr_node
from pdr_graph.budget import merge_rows
from pdr_graph.errors import TransientError
from pdr_graph.step import Step
from pdr_graph.types import LedgerRow, Solution, Verdict
from tests.embed.stops import QUIET_TURNS, RUN
from tests.embed.trials import (
    FIRST,
    FIRST_CALLS,
    OTHER,
    OTHER_CALLS,
    PARENTS,
    Charged,
    Graph,
    Oracle,
    Saver,
    Sheet,
    answer_in,
    client_of,
    question,
)


async def stopped(graph: Graph, entry: object, oracle: Oracle, at: int, **options: Any) -> None:
    """Call a graph, and cancel it in one of its own calls of the model."""
    oracle.holds_from = oracle.num_calls + at
    run = asyncio.create_task(graph.ainvoke(entry, RUN, **options))
    arrived = asyncio.create_task(oracle.arrived(oracle.holds_from))
    await asyncio.wait({run, arrived}, return_when=asyncio.FIRST_COMPLETED)
    for _ in range(QUIET_TURNS):
        await asyncio.sleep(0)
    assert run.cancel()
    arrived.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    oracle.behave()


def charged(state: dict[str, Any], channel: str = "ledger") -> int:
    """Return how many calls a ledger has."""
    return sum(row["calls"] for row in state[channel])


def one_node(node: Callable[..., Any], schema: type = Charged, **options: Any) -> StateGraph:
    """Return a parent with one node."""
    builder = StateGraph(schema)
    builder.add_node("one", node, **options)
    builder.add_edge(START, "one")
    return builder


def asked(name: str) -> dict[str, Any]:
    """Return the input of a conversation."""
    return {"messages": [("user", question(name))]}


# ----------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize("names", [("ALPHA", "BETA"), ("ALPHA", "ALPHA")])
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_node_may_call_two_of_ours(at_once, names):
    """Each goes on with its own run, by its own config, also where both ask the same."""
    for at in (1, 3, 5, 7, 9):
        oracle = Oracle()
        first, second = (
            pdr_node(config, model=client_of(oracle), input=lambda _, name=name: question(name))
            for config, name in zip((FIRST, OTHER), names, strict=True)
        )

        async def both(state: Charged, runtime: Runtime, first=first, second=second):
            if at_once:
                made = await asyncio.gather(*(n(state, runtime=runtime) for n in (first, second)))
            else:
                made = [await each(state, runtime=runtime) for each in (first, second)]
            return {key: [*made[0][key], *made[1][key]] for key in ("messages", "ledger")}

        graph = one_node(both).compile(checkpointer=InMemorySaver())
        await stopped(graph, asked("DELTA"), oracle, at)
        state = await graph.ainvoke(None, RUN)
        made = state["messages"][-2:]
        assert tuple(answer_in(each.text) for each in made) == names
        assert [each.response_metadata["pdr"]["ledger"]["failed"] for each in made] == [0, 0]
        assert oracle.num_repeated() == 0
        assert sum(each.finished for each in oracle.asked) == FIRST_CALLS + OTHER_CALLS
        assert charged(state) == oracle.num_calls


@pytest.mark.parametrize("refuses", [{1, 2}, {3}, {6}])
async def test_a_node_may_call_ours_again_after_an_error(refuses):
    """It goes on where it was."""
    oracle = Oracle(refuses=frozenset(refuses))
    ours = pdr_node(FIRST, model=client_of(oracle))

    async def tries(state: Charged, runtime: Runtime):
        try:
            return await ours(state, runtime=runtime)
        except TransientError:
            return await ours(state, runtime=runtime)

    graph = one_node(tries).compile(checkpointer=InMemorySaver())
    state = await graph.ainvoke(asked("ALPHA"), RUN)
    assert oracle.num_repeated() == 0
    assert charged(state) == oracle.num_calls == FIRST_CALLS + len(refuses)


async def test_a_problem_that_is_never_the_same_is_charged_once():
    """A date in it, say: the node is called with another one when the parent goes on."""
    for at in (2, 4):
        oracle, date = Oracle(), itertools.count()
        node = pdr_node(
            FIRST,
            model=client_of(oracle),
            input=lambda _, date=date: f"Day {next(date)}. {question('ALPHA')}",
        )
        graph = one_node(node).compile(checkpointer=InMemorySaver())
        await stopped(graph, asked("DELTA"), oracle, at)
        state = await graph.ainvoke(None, RUN)
        assert answer_in(state["messages"][-1].text) == "ALPHA"
        assert charged(state) == oracle.num_calls


async def test_runs_on_one_thread_without_a_store_share_no_quorum():
    """The thread is a name for the log there, and no place."""

    class Slow(Oracle):
        async def _agenerate(self, messages, *rest, **options):
            for _ in range(200 if "BETA" in messages[-1].text else 0):
                await asyncio.sleep(0)
            return await super()._agenerate(messages, *rest, **options)

    config = FIRST.model_copy(update={"widths": (4,), "quorum": 0.5})
    graph = build_graph(client_of(Slow()), default=config)
    entries = [{"problem": question(name)} for name in ("ALPHA", "BETA")]
    states = await graph.abatch(entries, RUN)
    assert [answer_in(each["solution"]["text"]) for each in states] == ["ALPHA", "BETA"]


@pytest.mark.parametrize("context", [None, {}])
async def test_a_config_in_the_input_counts_where_the_context_says_nothing(context):
    """A server hands an empty context in."""
    graph = build_graph(client_of(Oracle()), default=FIRST)
    entry = {"problem": question("ALPHA"), "config": OTHER.model_dump(mode="json")}
    state = await graph.ainvoke(entry, context=context)
    assert tuple(state["config"]["widths"]) == OTHER.widths


# ---------------------------------------------------------------------------- the graph as a node


@dataclass
class Fields:
    """A state that is a dataclass."""

    problem: str = ""
    solution: Solution | None = None
    ledger: Annotated[list[LedgerRow], merge_rows] = field(default_factory=list)


class Model(BaseModel):
    """A state that is a pydantic model, with a channel named as one of ours."""

    problem: str = ""
    solution: Any = None
    phase: str = "mine"
    ledger: Annotated[list[LedgerRow], merge_rows] = []


@pytest.mark.parametrize("schema", [Fields, Model])
async def test_a_state_may_be_no_dict(schema):
    """A parent that goes on hands the same problem to the graph, and it goes on too."""
    for at in (2, 4):
        oracle = Oracle()
        node = build_graph(client_of(oracle), default=FIRST)
        graph = one_node(node, schema).compile(checkpointer=InMemorySaver())
        await stopped(graph, {"problem": question("ALPHA")}, oracle, at)
        state = await graph.ainvoke(None, RUN)
        assert answer_in(state["solution"]["text"]) == "ALPHA"
        assert state.get("phase", "mine") == "mine"
        assert oracle.num_repeated() == 0
        assert charged(state) == oracle.num_calls


def shared(oracle: Oracle, **options: Any) -> Graph:
    """Return a parent whose graph of ours has one place for all turns."""
    node = build_graph(client_of(oracle), default=FIRST, checkpointer=True)
    builder = StateGraph(Sheet, context_schema=PDRConfig)
    builder.add_node("pdr", node, **options)
    builder.add_edge(START, "pdr")
    return builder.compile(checkpointer=InMemorySaver())


async def test_a_place_for_all_turns_keeps_them_apart():
    """None goes on, the same question asked anew and another one open a run each."""
    for at in (2, 4, 6):
        oracle = Oracle()
        graph = shared(oracle)
        await graph.ainvoke({"problem": question("GAMMA")}, RUN)
        for name, entry in (
            ("ALPHA", None),
            ("BETA", {"problem": question("BETA")}),
            ("ALPHA", {"problem": question("DELTA")}),
        ):
            await stopped(graph, {"problem": question(name)}, oracle, at, context=FIRST)
            before = oracle.num_calls
            state = await graph.ainvoke(entry, RUN, context=OTHER)
            got = answer_in(state["solution"]["text"])
            assert question(got) == (entry or {"problem": question(name)})["problem"]
            made = oracle.num_calls - before
            assert made == (OTHER_CALLS if entry else FIRST_CALLS + 1 - at)
            assert charged(state) == oracle.num_calls


@pytest.mark.parametrize("refuses", [{1, 2}, {3}, {6}])
async def test_in_a_place_for_all_turns_a_node_is_tried_again(refuses):
    """It goes on where it was."""
    oracle = Oracle(refuses=frozenset(refuses))
    policy = RetryPolicy(initial_interval=0.0, jitter=False)
    state = await shared(oracle, retry_policy=policy).ainvoke({"problem": question("ALPHA")}, RUN)
    assert charged(state) == oracle.num_calls == FIRST_CALLS + len(refuses)


# ---------------------------------------------------------------------------------- other ledgers


class Priced(MessagesState):
    """A conversation whose cost has a name of its own."""

    cost: Annotated[list[LedgerRow], merge_rows]
    pdr_ledger: Annotated[list[LedgerRow], merge_rows]
    ledger: str


async def test_a_ledger_that_is_named_takes_all_of_the_cost():
    """That of an abandoned run too, and no other channel takes any."""
    oracle = Oracle()
    node = pdr_node(FIRST, model=client_of(oracle), ledger="cost")
    graph = one_node(node, Priced).compile(checkpointer=InMemorySaver())
    await stopped(graph, asked("ALPHA"), oracle, 4)
    state = await graph.ainvoke(asked("BETA"), RUN)
    assert charged(state, "cost") == oracle.num_calls
    assert not state["pdr_ledger"]
    assert "ledger" not in state


async def test_a_wide_round_is_not_told_draft_by_draft():
    """A store gets the same rows again each time that the graph around is told of the cost."""

    class Counting(InMemorySaver):
        told = 0

        async def aput_writes(self, config, writes, task_id, *rest):
            self.told += len(writes) if task_id == NULL_TASK_ID else 0
            await super().aput_writes(config, writes, task_id, *rest)

    saver, wide = Counting(), FIRST.model_copy(update={"widths": (64,)})
    node = pdr_node(wide, model=client_of(Oracle()))
    await one_node(node).compile(checkpointer=saver).ainvoke(asked("ALPHA"), RUN)
    assert 64 < saver.told < 8 * 64


class Accounts(MessagesState):
    """A conversation in which a ledger is something else."""

    ledger: str


async def test_a_ledger_further_out_that_is_none_is_left_alone():
    """The graph that calls ours has one; the graph around that has a text of this name."""
    oracle = Oracle()
    inner = one_node(pdr_node(FIRST, model=client_of(oracle))).compile()

    async def calls(state: Accounts):
        found = await inner.ainvoke({"messages": state["messages"]})
        return {"messages": found["messages"][-1:]}

    graph = one_node(calls, Accounts).compile(checkpointer=InMemorySaver())
    await stopped(graph, asked("ALPHA"), oracle, 4)
    state = await graph.ainvoke(None, RUN)
    assert answer_in(state["messages"][-1].text) == "ALPHA"
    assert "ledger" not in state


class Document(TypedDict, total=False):
    """A state from which questions are made."""

    text: str
    out: str


async def test_a_cache_tells_what_is_asked_and_what_is_made_of_it():
    """Two nodes of one name on one cache, with the same state, and another `input` or `output`."""
    cache, oracle = InMemoryCache(), Oracle()

    async def answer(name: str, mark: str) -> str:
        node = pdr_node(
            OTHER,
            model=client_of(oracle),
            input=lambda state: f"{state['text']} {question(name)}",
            output=lambda result: {"out": mark + str(result.answer)},
        )
        graph = one_node(node, Document, cache_policy=CachePolicy()).compile(cache=cache)
        state = await graph.ainvoke({"text": "Think."})
        return str(state["out"])

    asked_for = [("ALPHA", "A"), ("BETA", "A"), ("ALPHA", "B"), ("ALPHA", "A"), ("BETA", "A")]
    assert [await answer(*each) for each in asked_for] == ["A1", "A2", "B1", "A1", "A2"]
    assert oracle.num_calls == 3 * OTHER_CALLS


# ------------------------------------------------------------------------------------------ beside


async def test_a_tool_that_another_left_behind_is_waited_for():
    """`ToolNode` ends with the first error; the agent that goes on takes what the tool made."""
    oracle, fails = Oracle(), [True]

    @tool
    async def flaky(text: str) -> str:
        """Fail once."""
        for _ in range(5):
            await asyncio.sleep(0)
        if fails.pop():
            fails.append(False)
            raise OSError("flaky")
        fails.append(False)
        return "Done."

    def caller(state: Charged):
        ours = ToolCall(name="think_hard", args={"question": question("ALPHA")}, id="1")
        calls = [ours, ToolCall(name="flaky", args={"text": "x"}, id="2")]
        return {"messages": [AIMessage("", tool_calls=calls)]}

    builder = one_node(caller)
    tools = [as_tool(FIRST, model=client_of(oracle)), flaky]
    builder.add_node("tools", ToolNode(tools, handle_tool_errors=False))
    builder.add_edge("one", "tools")
    graph = builder.compile(checkpointer=InMemorySaver())
    with pytest.raises(OSError, match="flaky"):
        await graph.ainvoke(asked("ALPHA"), RUN)
    state = await graph.ainvoke(None, RUN)
    assert "Done." in [each.text for each in state["messages"]]
    assert charged(state) == oracle.num_calls == FIRST_CALLS


class UnevenSaver(InMemorySaver):
    """Takes a while for its reads, each another one."""

    def __init__(self, turns: tuple[int, ...]) -> None:
        super().__init__()
        self.turns = itertools.cycle(turns)

    async def aget_tuple(self, config: RunnableConfig) -> Any:
        """Read after some turns of the event loop."""
        for _ in range(next(self.turns)):
            await asyncio.sleep(0)
        return await super().aget_tuple(config)


async def person(step: Step) -> Verdict:
    """Ask a person about the problem."""
    said = interrupt(step.problem)
    return Verdict(verifier="person", accepted=said == "yes", reason=f"{step.problem} {said}")


@pytest.mark.parametrize("turns", [(0,), (9, 0), (0, 9), (25, 3, 0), (2, 0, 17, 5, 29), (1, 30, 7)])
async def test_of_two_questions_to_a_person_the_one_that_was_shown_is_answered(turns):
    """Tools of one task show one question at a time, and an answer need not name it."""
    config = OTHER.model_copy(update={"verifier": "person"})
    saver: Saver = UnevenSaver(turns)
    parent, oracle = PARENTS["tools"], Oracle()
    extensions = Extensions(verifiers={"person": person})
    graph = parent.build(client_of(oracle), config, saver, extensions)
    state = await graph.ainvoke(parent.entry(("ALPHA", "BETA")), RUN)
    shown = []
    while waits := state.get("__interrupt__"):
        (one,) = waits
        shown.append(one.value)
        answer = "yes" if "ALPHA" in one.value else "no"
        state = await graph.ainvoke(Command(resume=answer), RUN)
    assert sorted(shown) == [question("ALPHA"), question("BETA")]
    said = [m.artifact["verdict"]["reason"] for m in state["messages"] if m.type == "tool"]
    assert said == ["What is ALPHA? yes", "What is BETA? no"]
