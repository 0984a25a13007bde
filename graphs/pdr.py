"""Parallel-Distill-Refine, with the preset `pdr`, for LangGraph Studio and `langgraph dev`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph_sdk.runtime import ServerRuntime

from graphs.opening import default_config, opened
from pdr_graph import Models, build_graph
from pdr_graph.graph import PDRGraph


def build(models: Models) -> PDRGraph:
    """Compile the graph."""
    return build_graph(models, default=default_config("pdr"))


@asynccontextmanager
async def pdr(runtime: ServerRuntime[None]) -> AsyncIterator[PDRGraph]:
    """Open the graph; its form shows the defaults of the preset `pdr`."""
    async with opened(runtime, build) as graph:
        yield graph
