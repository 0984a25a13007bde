"""One run as a subgraph of the node that is being executed."""

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph._internal._constants import (
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_STREAM,
)
from langgraph.config import get_config
from langgraph.types import StreamWriter

from pdr_graph.budget import elapsed_s
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.event_log import log_event
from pdr_graph.graph import PDRGraph, max_supersteps
from pdr_graph.result import Result
from pdr_graph.state import PDRState, ProblemInput, owes_drafts, state_of


async def subrun(
    graph: PDRGraph, problem: str, config: PDRConfig, *, write: StreamWriter
) -> Result:
    """Run the graph within the calling node, or go on with the run that the node had begun.

    Args:
        graph: Compiled without a checkpointer, so that it takes the parent's.
        problem: The task; unused by a run that goes on.
        config: What is asked for; a run that goes on keeps its record.
        write: Receives the events where the parent's stream does not show subgraphs. Where it
            does they arrive under the subgraph's namespace.

    Raises:
        ConfigError: the request cannot be carried out as asked.
        ContextWindowError, QuorumError, CallError: as for `solve`; run the parent again with the
            input None, and it goes on from here.
    """
    if not problem.strip():
        raise ConfigError("the problem is empty; state the task to be solved")
    outer = get_config()
    await _ask_again(graph, outer)
    # Without a stream that shows subgraphs their events would be dropped, not passed up.
    forwards = CONFIG_KEY_STREAM not in outer["configurable"]
    state: PDRState = {}
    thread_id = str(outer["configurable"].get("thread_id", ""))
    async for part in graph.astream(
        ProblemInput(problem=problem, config=config.model_dump(mode="json")),
        {"recursion_limit": max_supersteps(config)},
        context=config,
        stream_mode=["custom", "values"] if forwards else ["values"],
        version="v2",
    ):
        if part["type"] == "custom":
            log_event(thread_id, part["data"])
            write(part["data"])
        elif part["type"] == "values":
            state = state_of(part["data"])
    return Result.of_state(thread_id, state, elapsed_s(state.get("ledger", [])))


async def _ask_again(graph: PDRGraph, outer: RunnableConfig) -> None:
    """Let a round that stopped below its quorum ask for the missing drafts."""
    known: dict[str, Any] = outer["configurable"]  # Any: LangGraph's own keys
    if not (known.get(CONFIG_KEY_RESUMING) and known.get(CONFIG_KEY_CHECKPOINTER)):
        return
    snapshot = await graph.aget_state(outer)
    if snapshot.created_at and owes_drafts(snapshot):
        await graph.aupdate_state(outer, {"phase": "draft"}, as_node="plan")
