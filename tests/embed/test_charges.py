"""What PDR costs inside other graphs: each call is charged once, whatever repeats it."""

import asyncio
from typing import Annotated, Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import ToolRetryMiddleware
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import CachePolicy, RetryPolicy

from graphs.agent import AssistantState, build_agent
from pdr_graph import Extensions, as_tool, build_graph, pdr_node, resume, solve
from pdr_graph.budget import Ledger, merge_rows
from pdr_graph.errors import ConfigError
from pdr_graph.run import Parts
from pdr_graph.types import LedgerRow
from tests.embed.trials import (
    FIRST,
    FIRST_CALLS,
    OTHER,
    OTHER_CALLS,
    PARENTS,
    Charged,
    Oracle,
    client_of,
    node,
    question,
)

ASKED = {"messages": [("user", question("ALPHA"))]}
RUN: dict[str, Any] = {"configurable": {"thread_id": "t"}}
AT_ONCE = RetryPolicy(initial_interval=0, jitter=False, retry_on=Exception)


def calls(rows: list[LedgerRow]) -> int:
    return sum(row["calls"] for row in rows)


def fails_once() -> Any:
    """Return a distiller that asks the model and then fails, the first time."""
    made: list[bool] = []

    async def distil(step: Any) -> list[list[Any]]:
        made.append(True)
        await step.ask.one("draft", problem=step.problem, answer_format="")
        if len(made) == 1:
            raise RuntimeError("no")
        return [[]]

    return distil


class Agent(GenericFakeChatModel):
    """An agent's model, which is told of tools."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self


def failing_once() -> tuple[Any, Any]:
    """Return a config whose distiller fails once, and the extensions that hold it."""
    config = FIRST.model_copy(update={"distiller": "once", "widths": (2,)})
    return config, Extensions(distillers={"once": fails_once()})


@pytest.mark.parametrize("saver", [None, InMemorySaver])
async def test_a_node_that_its_graph_retries_is_charged_for_both_attempts(saver):
    """Without a checkpointer all of it is done again; with one, what failed alone."""
    config, extensions = failing_once()
    oracle = Oracle()
    builder = StateGraph(Charged)
    reason = pdr_node(config, model=client_of(oracle), extensions=extensions)
    builder.add_node("reason", reason, retry_policy=AT_ONCE)
    builder.add_edge(START, "reason")
    graph = builder.compile(checkpointer=None if saver is None else saver())
    state = await graph.ainvoke(ASKED, RUN)
    assert calls(state["ledger"]) == oracle.num_calls == (5 if saver else 7)


async def test_a_graph_that_is_retried_as_a_node_goes_on_in_its_place():
    """A further attempt finds what the first one has finished."""
    config, extensions = failing_once()
    oracle = Oracle()
    builder = StateGraph(Charged)
    inner = build_graph(client_of(oracle), default=config, extensions=extensions)

    async def twice(state: Any) -> Any:
        first = await inner.ainvoke({"problem": question("ALPHA")})
        second = await inner.ainvoke({"problem": question("BETA")})
        return {"ledger": [*first["ledger"], *second["ledger"]]}

    builder.add_node("twice", twice, retry_policy=AT_ONCE)
    builder.add_edge(START, "twice")
    state = await builder.compile(checkpointer=InMemorySaver()).ainvoke(ASKED, RUN)
    assert calls(state["ledger"]) == oracle.num_calls == 2 * 4 + 1


async def test_a_step_that_fails_after_its_calls_is_charged_when_the_run_is_resumed():
    """What it had asked is paid for, and asked again."""
    config, extensions = failing_once()
    oracle, saver = Oracle(), InMemorySaver()
    parts = Parts(extensions=extensions)
    with pytest.raises(RuntimeError, match="no"):
        await solve(
            question("ALPHA"), config, model=client_of(oracle), checkpointer=saver, thread_id="t",
            parts=parts,
        )  # fmt: skip
    result = await resume("t", model=client_of(oracle), checkpointer=saver, parts=parts)
    assert calls(list(result.ledger.rows)) == oracle.num_calls == 5
    assert result.ledger.b_total == 5 * 18


@pytest.mark.parametrize("saver", [None, InMemorySaver])
async def test_a_tool_that_an_agent_retries_is_charged_for_all_attempts(saver):
    """LangChain's retry middleware calls the tool again within one step of the agent."""
    config, extensions = failing_once()
    oracle = Oracle()
    call = ToolCall(name="think_hard", args={"question": question("ALPHA")}, id="one")
    agent: Any = create_agent(
        Agent(messages=iter([AIMessage("", tool_calls=[call]), AIMessage("Done.")])),
        tools=[as_tool(config, model=client_of(oracle), extensions=extensions)],
        middleware=[ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)],
        state_schema=AssistantState,
        checkpointer=None if saver is None else saver(),
    )
    state = await agent.ainvoke(ASKED, RUN)
    assert calls(state["ledger"]) == oracle.num_calls == (5 if saver else 7)


async def test_turns_of_a_conversation_add_up_through_a_graph_in_between():
    """The middle graph hands the whole ledger back, which counts once."""
    oracle = Oracle()
    graph = PARENTS["between"].build(client_of(oracle), FIRST, InMemorySaver(), None)
    totals = []
    for name in ("ALPHA", "BETA", "GAMMA"):
        state = await graph.ainvoke({"messages": [("user", question(name))]}, RUN)
        totals.append((calls(state["ledger"]), Ledger(tuple(state["ledger"])).b_seq))
    (first, b_seq), *_ = totals
    assert totals == [(first * turn, b_seq * turn) for turn in (1, 2, 3)]
    assert totals[-1][0] == oracle.num_calls == 3 * FIRST_CALLS


async def test_a_ledger_that_is_handed_from_call_to_call_adds_up():
    """Without a checkpointer the user hands the state on; super-steps begin anew."""
    oracle = Oracle()
    graph = node(client_of(oracle), FIRST, None, None)
    state: Any = await graph.ainvoke(ASKED)
    one = Ledger(tuple(state["ledger"])).b_seq
    state["messages"].append(("user", question("BETA")))
    state = await graph.ainvoke(state)
    assert calls(state["ledger"]) == oracle.num_calls == 2 * FIRST_CALLS
    assert Ledger(tuple(state["ledger"])).b_seq == 2 * one


def parallel(client: Any) -> Any:
    """Return a parent with two nodes side by side."""
    builder = StateGraph(Charged)
    for name in ("left", "right"):
        builder.add_node(name, pdr_node(FIRST, model=client))
        builder.add_edge(START, name)
    return builder.compile()


async def test_nodes_side_by_side_have_one_critical_path():
    """B_seq is that of the longer."""
    oracle = Oracle()
    state = await parallel(client_of(oracle)).ainvoke(ASKED)
    assert calls(state["ledger"]) == 2 * FIRST_CALLS
    ledger = Ledger(tuple(state["ledger"]))
    assert ledger.b_seq < ledger.b_total
    assert ledger.b_seq == max(row["critical_tokens"] for row in state["ledger"])


async def test_the_shipped_agents_tool_is_charged():
    """Its assistant keeps a ledger of its own, which becomes the agent's."""
    call = ToolCall(name="think_hard", args={"question": question("ALPHA")}, id="one")

    class Scripted(Oracle):
        """Sorts the question as easy, calls the tool, and reports."""

        async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            said = AIMessage("Done.")
            if "sort questions" in messages[0].text:
                said = AIMessage("EASY")
            elif "helpful assistant" in messages[0].text:
                said = AIMessage("", tool_calls=[call]) if len(messages) < 3 else said
            else:
                return await super()._agenerate(messages, *args, **kwargs)
            return ChatResult(generations=[ChatGeneration(message=said)])

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    model = Scripted()
    state = await build_agent(client_of(model), FIRST).ainvoke(ASKED)
    assert calls(state["ledger"]) == model.num_calls == FIRST_CALLS


# ------------------------------------------------------------------------------------- caches


def cached(client: Any, config: Any, cache: Any) -> Any:
    """Return a parent whose node is kept in a cache."""
    builder = StateGraph(Charged)
    builder.add_node(
        "reason",
        pdr_node(config, model=client),
        cache_policy=CachePolicy(key_func=lambda state: state["messages"][-1].text),
    )
    builder.add_edge(START, "reason")
    return builder.compile(cache=cache, checkpointer=InMemorySaver())


async def test_a_cached_answer_is_charged_once():
    """A further turn of the thread gets the answer for nothing."""
    oracle = Oracle()
    graph = cached(client_of(oracle), FIRST, InMemoryCache())
    for _ in range(3):
        state = await graph.ainvoke(ASKED, RUN)
    assert calls(state["ledger"]) == oracle.num_calls == FIRST_CALLS


async def test_two_configs_share_no_cached_answer():
    """The key holds config, prompts and model; the function's name alone would be the same."""
    oracle, cache = Oracle(), InMemoryCache()
    await cached(client_of(oracle), FIRST, cache).ainvoke(ASKED, RUN)
    await cached(client_of(oracle), OTHER, cache).ainvoke(ASKED, RUN)
    assert oracle.num_calls == FIRST_CALLS + OTHER_CALLS
    await cached(client_of(oracle), OTHER, cache).ainvoke(ASKED, RUN)
    assert oracle.num_calls == FIRST_CALLS + OTHER_CALLS


# ------------------------------------------------------------------------------------ channels


class Own(TypedDict, total=False):
    """A parent that uses PDR's names for things of its own."""

    problem: str
    round: str
    phase: list[str]
    config: dict[str, Any]
    ledger: str
    notes: str
    solution: Any


async def test_a_parents_own_channels_are_left_alone():
    """A node of the compiled graph brings a solution, and touches nothing else."""
    oracle = Oracle()
    builder = StateGraph(Own)
    builder.add_node("reason", build_graph(client_of(oracle), default=OTHER))
    builder.add_edge(START, "reason")
    own = {"round": "third", "phase": ["a"], "config": {"k": 3}, "ledger": "l", "notes": "n"}
    state = await builder.compile().ainvoke({"problem": question("ALPHA"), **own})
    assert {name: state[name] for name in own} == own
    assert oracle.num_calls == OTHER_CALLS
    assert state["solution"]["answer"] == "1"


async def test_a_nodes_cost_goes_to_a_ledger_alone():
    """A channel `ledger` of another type is not ours; `pdr_ledger` is looked for first."""

    class Both(MessagesState):
        ledger: str
        pdr_ledger: Annotated[list[LedgerRow], merge_rows]

    oracle = Oracle()
    builder = StateGraph(Both)
    builder.add_node("reason", pdr_node(FIRST, model=client_of(oracle)))
    builder.add_edge(START, "reason")
    state = await builder.compile().ainvoke({**ASKED, "ledger": "mine"})
    assert state["ledger"] == "mine"
    assert calls(state["pdr_ledger"]) == FIRST_CALLS


@pytest.mark.parametrize(
    ("named", "why"), [("bill", "has no such channel"), ("ledger", "for something else")]
)
async def test_a_named_channel_that_is_no_ledger_is_refused_before_any_call(named, why):
    """One sentence, with how to declare it."""

    class Mine(MessagesState):
        ledger: str

    oracle = Oracle()
    builder = StateGraph(Mine)
    builder.add_node("reason", pdr_node(FIRST, model=client_of(oracle), ledger=named))
    builder.add_edge(START, "reason")
    with pytest.raises(ConfigError, match=why):
        await builder.compile().ainvoke(ASKED)
    assert oracle.num_calls == 0


async def test_runs_side_by_side_without_a_thread_have_quorums_of_their_own():
    """Nothing but the run tells them apart."""
    config = FIRST.model_copy(update={"quorum": 0.5, "min_success": 0.5})
    oracle = Oracle()
    graph = build_graph(client_of(oracle), default=config)
    names = ("ALPHA", "BETA", "GAMMA", "DELTA")
    states = await asyncio.gather(*(graph.ainvoke({"problem": question(name)}) for name in names))
    assert [state["solution"]["answer"] for state in states] == ["1", "2", "3", "4"]


# ------------------------------------------------------------------------------------ streams


async def test_an_answer_that_is_streamed_twice_has_one_id(connect):
    """The refinement, streamed below its subgraph, and the node's message are the same message."""
    streamed: dict[str, str] = {}
    last: Any = None
    async for part in node(connect(), OTHER, None, None).astream(
        {"messages": [("user", "What is 6 x 7?")]},
        stream_mode=["messages", "values"],
        subgraphs=True,
        version="v2",
    ):
        if part["type"] == "values" and not part["ns"]:
            last = part["data"]["messages"][-1]
        elif part["type"] == "messages" and part["ns"]:
            message = part["data"][0]
            streamed[message.id] = streamed.get(message.id, "") + message.text
    assert streamed[last.id] == last.text


async def test_a_step_reads_the_context_of_the_graph_around_it():
    """`step.context` is the parent's; in a run of its own there is none."""
    seen: list[Any] = []

    async def distil(step: Any) -> list[list[Any]]:
        seen.append(step.context)
        return [[]]

    config = OTHER.model_copy(update={"distiller": "spy"})
    extensions = Extensions(distillers={"spy": distil})

    class Tenant(TypedDict):
        name: str

    builder = StateGraph(Charged, context_schema=Tenant)
    client = client_of(Oracle())
    builder.add_node("reason", pdr_node(config, model=client, extensions=extensions))
    builder.add_edge(START, "reason")
    await builder.compile().ainvoke(ASKED, context={"name": "ACME"})
    await solve(question("ALPHA"), config, model=client, parts=Parts(extensions=extensions))
    assert seen == [{"name": "ACME"}, None]
