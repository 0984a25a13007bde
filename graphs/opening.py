"""How the graphs of this folder are opened: with a model while something runs, off the event loop.

Building a graph reads files, which the development server refuses in its event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from langchain_core.language_models import FakeListChatModel
from langgraph_sdk.runtime import ServerRuntime

from pdr_graph import ModelClient, PDRConfig, preset
from pdr_graph.connect import open_client
from pdr_graph.servers.llama import small_config
from pdr_graph.settings import load_settings

Graph = TypeVar("Graph")


@asynccontextmanager
async def opened(
    runtime: ServerRuntime[None], build: Callable[[ModelClient], Graph]
) -> AsyncIterator[Graph]:
    """Open a graph, on the configured model if it is to run.

    Studio opens a graph for whatever it shows of it, and only a run asks the model.

    Args:
        runtime: What the server opens the graph for.
        build: Compiles it, without a checkpointer: the server brings its own.
    """
    if runtime.execution_runtime is None:
        nobody = ModelClient(FakeListChatModel(responses=["nothing runs, so nobody asks"]))
        yield await asyncio.to_thread(build, nobody)
        return
    settings = await asyncio.to_thread(load_settings)
    async with open_client(settings) as client:
        yield await asyncio.to_thread(build, client)


def default_config(name: str, **fields: object) -> PDRConfig:
    """Return a preset with fields of one's own, scaled down where the embedded model runs it."""
    embedded = load_settings().base_url is None
    return small_config(name, fields) if embedded else preset(name, **fields)
