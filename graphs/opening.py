"""Opens the graphs of this folder for a server, and connects the model only if a graph is to run.

Graphs are built in a thread: that reads files, which the development server forbids in its event
loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from langchain_core.language_models import FakeListChatModel
from langgraph_sdk.runtime import ServerRuntime

from pdr_graph import ModelClient, Models, PDRConfig, preset
from pdr_graph.connect import open_models
from pdr_graph.servers.llama import small_config
from pdr_graph.settings import load_settings

Graph = TypeVar("Graph")


@asynccontextmanager
async def opened(
    runtime: ServerRuntime[None], build: Callable[[Models], Graph]
) -> AsyncIterator[Graph]:
    """Open a graph, on the configured model if it is to run.

    Studio opens a graph for everything that it shows of it, but only a run asks the model.

    Args:
        runtime: What the server opens the graph for.
        build: Compiles the graph, without a checkpointer: the server provides one.
    """
    if runtime.execution_runtime is None:
        unasked = ModelClient(FakeListChatModel(responses=["never asked"]))
        yield await asyncio.to_thread(build, Models(unasked))
        return
    settings = await asyncio.to_thread(load_settings)
    async with open_models(settings) as models:
        yield await asyncio.to_thread(build, models)


def default_config(name: str, **fields: object) -> PDRConfig:
    """Return a preset with further fields, scaled down if the embedded model is to run it."""
    embedded = load_settings().base_url is None
    return small_config(name, fields) if embedded else preset(name, **fields)
