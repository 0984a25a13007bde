"""What a run was asked for, where it was killed before its first step wrote that into its state."""

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START
from langgraph.types import StateSnapshot

from pdr_graph.state import PDRState, state_of


async def with_input(
    state: PDRState, snapshot: StateSnapshot, checkpointer: BaseCheckpointSaver[str]
) -> PDRState:
    """Return a snapshot's state, with problem and config of the input that it has yet to take.

    LangGraph stores a run's input as a checkpoint of its own, outside of the state, and takes it
    over in a step without a node.

    Args:
        state: Of the snapshot.
        snapshot: The latest of its thread.
        checkpointer: Where it was read from.
    """
    if "config" in state:
        return state
    found = await checkpointer.aget_tuple(snapshot.config)
    given = found.checkpoint["channel_values"].get(START) if found is not None else None
    return {**state_of(given), **state} if isinstance(given, dict) else state
