"""An agent that answers easy questions at once, and hard ones by PDR.

    START → triage ─→ reason (PDR) ─→ END
                 └──→ assistant (an agent with PDR as a tool) ─→ END

A question that only turns out to be hard is thus still reasoned about.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, NotRequired

from langchain import agents
from langchain_core.messages import SystemMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph_sdk.runtime import ServerRuntime

from graphs.opening import form_config, opened
from pdr_graph import ModelClient, Models, PDRConfig, pdr_node
from pdr_graph.budget import merge_rows
from pdr_graph.embed import as_tool
from pdr_graph.types import LedgerRow

TRIAGE = SystemMessage(
    "You sort questions by effort. Do not answer. Reply with one word: EASY if an attentive person "
    "answers at once, such as small talk or a fact; HARD if it takes several steps, such as "
    "mathematics, planning or code."
)
ASSISTANT = (
    "You are a helpful assistant. Answer briefly. Where the question turns out to need several "
    "steps of reasoning, use the tool think_hard and report what it found."
)

Step = Literal["reason", "assistant"]


class AgentState(MessagesState):
    """The conversation, the step that answers its last question, and what reasoning has cost."""

    step: NotRequired[Step]
    ledger: Annotated[list[LedgerRow], merge_rows]


class AssistantState(agents.AgentState[Any]):  # Any: it answers in plain text
    """The assistant's conversation, and what its tool has cost."""

    ledger: Annotated[list[LedgerRow], merge_rows]


AgentGraph = CompiledStateGraph[AgentState, None, MessagesState, AgentState]


def build_agent(
    models: ModelClient | Models,
    config: PDRConfig,
    *,
    checkpointer: BaseCheckpointSaver[str] | None = None,
) -> AgentGraph:
    """Compile the agent; its input is `{"messages": [...]}`.

    Args:
        models: Reason, each in its role. The one that has no role of its own sorts and answers.
        config: How it reasons.
        checkpointer: Where conversations are kept; None if a server provides one.
    """
    client = Models.of(models).default

    async def triage(state: AgentState) -> dict[str, Step]:
        said = await client.model.ainvoke([TRIAGE, state["messages"][-1]], max_tokens=512)
        # In doubt it reasons: for an easy question that costs tokens, for a hard one it saves the
        # answer.
        easy = "EASY" in said.text.upper().split("HARD")[0]
        return {"step": "assistant" if easy else "reason"}

    def chosen(state: AgentState) -> Step:
        return state["step"]

    # Any: the state of an agent without middleware is LangChain's own.
    assistant: Any = agents.create_agent(
        client.model,
        state_schema=AssistantState,
        tools=[as_tool(config, model=models)],
        system_prompt=ASSISTANT,
        name="assistant",
    )
    builder = StateGraph(AgentState, input_schema=MessagesState)
    builder.add_node("triage", triage, input_schema=AgentState)
    builder.add_node("reason", pdr_node(config, model=models), input_schema=AgentState)
    builder.add_node("assistant", assistant)
    builder.add_edge(START, "triage")
    builder.add_conditional_edges("triage", chosen)
    builder.add_edge("reason", END)
    builder.add_edge("assistant", END)
    return builder.compile(checkpointer=checkpointer, name="agent")


def build(models: Models) -> AgentGraph:
    """Compile the agent; it reasons by the preset `pdr`, in plain text."""
    return build_agent(models, form_config(preset="pdr", answer="text"))


@asynccontextmanager
async def agent(runtime: ServerRuntime[None]) -> AsyncIterator[AgentGraph]:
    """Open the agent."""
    async with opened(runtime, build) as graph:
        yield graph
