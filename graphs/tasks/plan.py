"""A plan: a conversation in, a message out; the model judges it first."""

from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph

from pdr_graph import ModelClient, Models, PDRConfig, pdr_node

FIELDS = {"answer": "text", "verifier": "judge", "max_extra_rounds": 1}
"""A plan that the judge rejects is refined once more, with the judge's reasons in view."""


def build(
    models: ModelClient | Models, config: PDRConfig
) -> CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]:
    """Compile the graph; its input is `{"messages": [...]}`."""
    builder = StateGraph(MessagesState)
    builder.add_node("plan", pdr_node(config, model=models))
    builder.add_edge(START, "plan")
    return builder.compile(name="plan")
