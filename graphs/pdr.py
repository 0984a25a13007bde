"""Parallel-Distill-Refine as LangGraph Studio and `langgraph dev` open it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pdr_graph import build_graph
from pdr_graph.connect import open_client
from pdr_graph.graph import PDRGraph


@asynccontextmanager
async def pdr() -> AsyncIterator[PDRGraph]:
    """Open the graph on the configured endpoint; the server brings its own checkpointer."""
    async with open_client() as client:
        yield build_graph(client)
