"""PDR inside a larger graph: as a node of it, or as a tool of its agent.

    builder.add_node("reason", pdr_node(preset("pdr"), model=model))
    agent = create_agent(model, tools=[as_tool(preset("pdr"), model=model)])

Either is a subgraph: the parent's checkpointer keeps it, a resumed parent resumes it half-way, the
parent's stream tells its events, and the parent's ledger has its cost.
"""

from pdr_graph.embed.node import pdr_node
from pdr_graph.embed.subrun import as_message, charge, charges, read_messages
from pdr_graph.embed.tool import as_tool

__all__ = ["as_message", "as_tool", "charge", "charges", "pdr_node", "read_messages"]
