"""Sequential Refinement, the case of one draft a round, for Studio and `langgraph dev`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph_sdk.runtime import ServerRuntime

from graphs.opening import form_config, opened, steps
from pdr_graph import Models, build_graph
from pdr_graph.graph import PDRGraph


def build(models: Models) -> PDRGraph:
    """Compile the graph."""
    return build_graph(models, default=form_config(preset="sr"), extensions=steps())


@asynccontextmanager
async def sr(runtime: ServerRuntime[None]) -> AsyncIterator[PDRGraph]:
    """Open the graph; its form shows the defaults of the preset `sr`."""
    async with opened(runtime, build) as graph:
        yield graph
