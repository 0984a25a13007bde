"""PDR in LangGraph's own agents: their loops, retries and limits, and how they call and hand over.

They are stopped and continued as the parents of `test_stops.py` are, and by the same body.
"""

import asyncio
import itertools
from typing import Annotated, Any, NotRequired
from uuid import uuid4

import pytest
from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import (
    ModelCallLimitMiddleware,
    ModelRetryMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    ToolCall,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph, add_messages
from langgraph.managed import RemainingSteps
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy
from pdr_checkpoints import open_checkpointer
from pydantic import BaseModel
from typing_extensions import TypedDict

from pdr_graph import ModelClient, PDRConfig, as_tool, pdr_node
from pdr_graph.budget import merge_rows
from pdr_graph.errors import CallError, QuorumError, retry_on
from pdr_graph.types import LedgerRow
from tests.embed.stops import RUN, Trial, at_every_point, cancelled_in_a_call
from tests.embed.trials import (
    FIRST,
    FIRST_CALLS,
    PARENTS,
    Charged,
    Graph,
    Oracle,
    Parent,
    Saver,
    answer_in,
    calls_for,
    client_of,
    question,
)


class Agent(BaseChatModel):
    """Calls a tool for the user's last message, and then repeats the answer that it got."""

    tool: str = "think_hard"
    """A tool that takes a question is called once for each; a hand-over takes nothing."""

    @property
    def _llm_type(self) -> str:
        return "agent"

    def bind_tools(self, tools: Any, **options: Any) -> "Agent":
        """Know the tools already."""
        return self

    def _generate(self, messages: list[BaseMessage], *rest: Any, **options: Any) -> ChatResult:
        asked = max(i for i, each in enumerate(messages) if isinstance(each, HumanMessage))
        found = [each.text for each in messages[asked + 1 :] if "boxed" in each.text]
        if found:
            reply = AIMessage(found[-1])
        elif self.tool == "think_hard":
            reply = AIMessage("", tool_calls=calls_for(messages))
        else:
            call = ToolCall(name=self.tool, args={}, id=f"hand-over-{len(messages)}")
            reply = AIMessage("", tool_calls=[call])
        return ChatResult(generations=[ChatGeneration(message=reply)])


def agent(client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any) -> Graph:
    """Return LangChain's agent with PDR as a tool, and what it offers against faults and loops."""
    return create_agent(
        Agent(),
        tools=[as_tool(config, model=client, extensions=extensions)],
        middleware=[
            ToolRetryMiddleware(retry_on=retry_on, on_failure="error", initial_delay=0.0),
            ModelRetryMiddleware(initial_delay=0.0),
            ModelCallLimitMiddleware(run_limit=2),
            ToolCallLimitMiddleware(tool_name="think_hard", run_limit=2),
        ],
        state_schema=ChargedAgent,
        checkpointer=saver,
    )


class ChargedAgent(AgentState):
    """An agent's conversation and what it cost."""

    ledger: Annotated[list[LedgerRow], merge_rows]


def neighbour(
    client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any
) -> Graph:
    """Return a parent whose `ToolNode` calls PDR beside another tool that is a graph."""
    builder = StateGraph(MessagesState)
    builder.add_node("first", lambda state: {"messages": [("ai", "Half of it.")]})
    builder.add_node("second", lambda state: {"messages": [("ai", "Looked up.")]})
    builder.add_edge(START, "first")
    builder.add_edge("first", "second")
    other = builder.compile()

    @tool
    async def look_up(text: str) -> str:
        """Look something up."""
        found = await other.ainvoke({"messages": [("user", text)]})
        return "\n".join(each.text for each in found["messages"])

    def both(state: Charged) -> dict[str, Any]:
        look = ToolCall(name="look_up", args={"text": "This?"}, id=f"look-{len(state['messages'])}")
        calls = [look, *calls_for(state["messages"])]
        return {"messages": [AIMessage("", tool_calls=calls)]}

    def checked(state: Charged) -> dict[str, Any]:
        looked = [
            m for m in state["messages"] if isinstance(m, ToolMessage) and m.name == "look_up"
        ]
        assert {each.text for each in looked} == {"This?\nHalf of it.\nLooked up."}
        return {}

    parent = StateGraph(Charged)
    parent.add_node("caller", both)
    tools = [look_up, as_tool(config, model=client, extensions=extensions)]
    parent.add_node("tools", ToolNode(tools))
    parent.add_node("checked", checked)
    parent.add_edge(START, "caller")
    parent.add_edge("caller", "tools")
    parent.add_edge("tools", "checked")
    return parent.compile(checkpointer=saver)


def thinker(client: ModelClient, config: PDRConfig, extensions: Any) -> Graph:
    """Return an agent of PDR alone, to be handed a conversation."""
    builder = StateGraph(Charged)
    builder.add_node("reason", pdr_node(config, model=client, extensions=extensions))
    builder.add_edge(START, "reason")
    return builder.compile(name="thinker")


def supervisor(
    client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any
) -> Graph:
    """Return a supervisor that hands every question over to PDR."""
    made = pytest.importorskip("langgraph_supervisor").create_supervisor(
        [thinker(client, config, extensions)],
        model=Agent(tool="transfer_to_thinker"),
        state_schema=ChargedTeam,
    )
    return made.compile(checkpointer=saver)


class ChargedTeam(ChargedAgent):
    """The state that a supervisor wants, and what it cost."""

    remaining_steps: NotRequired[RemainingSteps]


def swarm(client: ModelClient, config: PDRConfig, saver: Saver | None, extensions: Any) -> Graph:
    """Return a swarm whose desk hands over to PDR, which stays the active agent."""
    package = pytest.importorskip("langgraph_swarm")

    class Charged(package.SwarmState):
        ledger: Annotated[list[LedgerRow], merge_rows]

    desk = create_agent(
        Agent(tool="transfer_to_thinker"),
        tools=[package.create_handoff_tool(agent_name="thinker")],
        name="desk",
    )
    agents = [desk, thinker(client, config, extensions)]
    made = package.create_swarm(agents, default_active_agent="desk", state_schema=Charged)
    return made.compile(checkpointer=saver)


PREBUILT = {
    "agent": Parent(agent),
    # LangChain's agent sends each call of a tool to a task of its own.
    "agent-two": Parent(agent, ("ALPHA", "BETA"), ("GAMMA", "DELTA")),
    "neighbour": Parent(neighbour),
    "supervisor": Parent(supervisor),
    "swarm": Parent(swarm),
}
CELLS = [
    *(("agent", stop, way) for stop in ("cancel", "drain") for way in ("none", "new")),
    ("agent", "ask", "none"),
    ("agent-two", "cancel", "none"),
    ("agent-two", "refuse", "new"),
    ("neighbour", "cancel", "none"),
    ("supervisor", "cancel", "none"),
    ("supervisor", "refuse", "new"),
    ("swarm", "cancel", "new"),
    ("swarm", "refuse", "none"),
]


# The supervisor's package is made of LangGraph's older agent.
@pytest.mark.filterwarnings("ignore::langgraph.warnings.LangGraphDeprecatedSinceV10")
@pytest.mark.parametrize(("parent", "stop", "way"), CELLS)
async def test_stopped_anywhere_an_agent_goes_on_right(parent, stop, way):
    """At every point: right answers, no finished call again, the ledger is the endpoint's count."""
    await at_every_point(PREBUILT[parent], stop, way)


AT_ONCE = RetryPolicy(initial_interval=0.0, jitter=False)
"""LangGraph's default of what is retried, without the wait."""


def node_with(oracle: Oracle, policy: RetryPolicy) -> Graph:
    """Return a parent whose node is tried again by a policy."""
    builder = StateGraph(Charged)
    builder.add_node("reason", pdr_node(FIRST, model=client_of(oracle)), retry_policy=policy)
    builder.add_edge(START, "reason")
    return builder.compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("policy", [AT_ONCE, AT_ONCE._replace(retry_on=retry_on)])
@pytest.mark.parametrize(
    ("status", "refuses"), [(503, {1, 2}), (503, {3}), (429, {4}), (503, {6}), (429, {1, 2, 5})]
)
async def test_a_node_is_tried_again_where_that_may_help(status, refuses, policy):
    """A quorum missed or a call lost: the node goes on where it was, and the ledger has it all."""
    oracle = Oracle(refuses=frozenset(refuses), status=status)
    state = await node_with(oracle, policy).ainvoke(Parent(agent).entry(("ALPHA",)), RUN)
    assert answer_in(state["messages"][-1].text) == "ALPHA"
    assert oracle.num_repeated() == 0
    assert oracle.num_calls == FIRST_CALLS + len(refuses)
    assert sum(row["calls"] for row in state["ledger"]) == oracle.num_calls


@pytest.mark.parametrize("policy", [AT_ONCE, AT_ONCE._replace(retry_on=retry_on)])
@pytest.mark.parametrize("status", [400, 401, 404])
@pytest.mark.parametrize(("refuses_from", "error"), [(1, QuorumError), (3, CallError)])
async def test_a_node_is_not_tried_again_where_it_would_fail_again(
    refuses_from, error, status, policy
):
    """A wrong key is wrong the second time too."""
    oracle = Oracle(refuses_from=refuses_from, status=status)
    with pytest.raises(error, match=f"HTTP {status}"):
        await node_with(oracle, policy).ainvoke(Parent(agent).entry(("ALPHA",)), RUN)
    assert oracle.num_calls == max(refuses_from, 2)


@pytest.mark.parametrize("refuses", [{1, 2}, {3}, {6}])
async def test_an_agent_tries_its_tool_again(refuses):
    """LangChain's middleware: the tool goes on where it was, and the ledger has it all."""
    trial = Trial(Parent(agent), oracle=Oracle(refuses=frozenset(refuses)))
    state = await trial.ask()
    assert trial.parent.answers(state, ("ALPHA",)) == {"ALPHA": "ALPHA"}
    assert trial.oracle.num_repeated() == 0
    assert trial.oracle.num_calls == FIRST_CALLS + len(refuses)
    assert sum(row["calls"] for row in state["ledger"]) == trial.oracle.num_calls


async def test_a_limit_of_calls_holds_for_the_tool():
    """What the limit leaves out is not asked, and is no answer."""
    trial = Trial(Parent(agent, ("ALPHA", "BETA", "GAMMA")))
    state = await trial.ask()
    said = {m.tool_call_id.partition("-")[0]: m for m in state["messages"] if m.type == "tool"}
    assert {name: answer_in(said[name].text) for name in ("ALPHA", "BETA")} == {
        "ALPHA": "ALPHA",
        "BETA": "BETA",
    }
    assert said["GAMMA"].status == "error"
    assert trial.oracle.count("GAMMA") == 0


# ---------------------------------------------------------------------------- shapes of a ToolNode


def asked_of(*names: str) -> list[AnyMessage]:
    """Return a conversation that ends with calls of the tool."""
    text = " ".join(map(question, names))
    human = HumanMessage(text)
    return [human, AIMessage("", tool_calls=calls_for([human]))]


def tools_of(oracle: Oracle, **options: Any) -> ToolNode:
    """Return a `ToolNode` with PDR as its tool."""
    return ToolNode([as_tool(FIRST, model=client_of(oracle))], **options)


def answers_of(messages: list[AnyMessage]) -> dict[str, str]:
    """Return whose answer each call of the tool got, and that it has its artifact."""
    called = [each for each in messages if isinstance(each, ToolMessage)]
    assert all(each.artifact["answer"] in each.text for each in called)
    return {each.tool_call_id.partition("-")[0]: answer_in(each.text) for each in called}


BOTH = {"ALPHA": "ALPHA", "BETA": "BETA"}


class Chat(TypedDict):
    """A conversation under another name."""

    chat: Annotated[list[AnyMessage], add_messages]


class Plain(BaseModel):
    """A state that is no dict."""

    messages: Annotated[list[AnyMessage], add_messages]


async def test_messages_may_have_another_key():
    """The answers go where the question came from."""
    oracle = Oracle()
    builder = StateGraph(Chat)
    builder.add_node("tools", tools_of(oracle, messages_key="chat"))
    builder.add_edge(START, "tools")
    state = await builder.compile().ainvoke({"chat": asked_of("ALPHA", "BETA")})
    assert answers_of(state["chat"]) == BOTH


async def test_the_state_may_be_a_list_of_messages():
    """As that of a graph whose whole state is its conversation."""
    oracle = Oracle()
    builder = StateGraph(Annotated[list[AnyMessage], add_messages])
    builder.add_node("tools", tools_of(oracle))
    builder.add_edge(START, "tools")
    assert answers_of(await builder.compile().ainvoke(asked_of("ALPHA", "BETA"))) == BOTH


async def test_the_state_may_be_a_model():
    """A pydantic model, as many parents have it."""
    oracle = Oracle()
    builder = StateGraph(Plain)
    builder.add_node("tools", tools_of(oracle))
    builder.add_edge(START, "tools")
    state = await builder.compile().ainvoke({"messages": asked_of("ALPHA", "BETA")})
    assert answers_of(state["messages"]) == BOTH


# ------------------------------------------------------------------------ tools called side by side


class LateSaver(InMemorySaver):
    """Answers the first of two reads after the second, as a store in another process may."""

    def __init__(self, first_waits: int, second_waits: int) -> None:
        super().__init__()
        self.waits = itertools.cycle((first_waits, second_waits))

    async def aget_tuple(self, config: RunnableConfig) -> Any:
        """Read after some turns of the event loop."""
        for _ in range(next(self.waits)):
            await asyncio.sleep(0)
        return await super().aget_tuple(config)


@pytest.mark.parametrize("waits", [(0, 0), (9, 0), (0, 9), (30, 3)])
async def test_answers_of_parallel_calls_are_not_swapped(waits):
    """However long the store takes for which of the reads, at any point of the runs."""
    for at in (1, 6, 9):
        trial = Trial(PARENTS["tools"], LateSaver(*waits))
        assert await cancelled_in_a_call(trial, at)
        trial.oracle.behave()
        state = await trial.go_on()
        assert trial.parent.answers(state, trial.names) == BOTH
        assert trial.oracle.num_repeated() == 0


async def test_a_call_that_fails_leaves_none_behind():
    """Nothing is asked once the parent has ended, and the other's work is not lost."""
    trial = Trial(PARENTS["tools"], oracle=Oracle(refuses_about="BETA"))
    with pytest.raises(QuorumError):
        await trial.ask()
    asked = trial.oracle.num_calls
    for _ in range(500):
        await asyncio.sleep(0)
    assert trial.oracle.num_calls == asked
    trial.oracle.behave()
    state = await trial.go_on()
    assert trial.parent.answers(state, trial.names) == BOTH
    assert trial.oracle.num_repeated() == 0
    assert sum(row["calls"] for row in state["ledger"]) == trial.oracle.num_calls


@pytest.mark.redis
@pytest.mark.parametrize(
    ("parent", "stop", "way"),
    [("root", "cancel", "resume"), ("node", "drain", "new"), ("tools", "cancel", "none")],
)
async def test_in_a_store_of_its_own_a_parent_goes_on_right(valkey, parent, stop, way):
    """The same with our saver on a real server, a thread for each point."""
    async with open_checkpointer(valkey, prefix=uuid4().hex) as saver:
        await at_every_point(PARENTS[parent], stop, way, lambda: saver)
