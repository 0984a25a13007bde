"""PDR inside a larger graph: as a node of it, or as a tool of its agent.

    builder.add_node("reason", pdr_node(preset("pdr"), model=model))
    agent = create_agent(model, tools=[as_tool(preset("pdr"), model=model)])

Either is a subgraph: kept by the parent's checkpointer, resumed half-way with it, told of in its
stream, and charged to its ledger.
"""

from pdr_graph.embed.node import pdr_node
from pdr_graph.embed.subrun import as_message, charge, read_messages
from pdr_graph.embed.tool import as_tool

__all__ = ["as_message", "as_tool", "charge", "pdr_node", "read_messages"]
