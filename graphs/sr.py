"""Sequential Refinement, PDR's one-draft case, as a graph that opens with its preset."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pdr_graph import build_graph, preset
from pdr_graph.connect import open_client
from pdr_graph.graph import PDRGraph


@asynccontextmanager
async def sr() -> AsyncIterator[PDRGraph]:
    """Open the graph with the `sr` preset where a caller brings no config of its own."""
    async with open_client() as client:
        yield build_graph(client, default=preset("sr"))
