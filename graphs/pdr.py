"""All strategies in one graph, at first the recommended one, for Studio and `langgraph dev`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph_sdk.runtime import ServerRuntime

from graphs.opening import form_config, opened, steps
from pdr_graph import Models, build_graph
from pdr_graph.graph import PDRGraph


def build(models: Models) -> PDRGraph:
    """Compile the graph."""
    return build_graph(models, default=form_config(), extensions=steps())


@asynccontextmanager
async def pdr(runtime: ServerRuntime[None]) -> AsyncIterator[PDRGraph]:
    """Open the graph; its form shows the recommended preset, or what the environment sets."""
    async with opened(runtime, build) as graph:
        yield graph
