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

from pdr_graph import ModelClient, Models, PDRConfig
from pdr_graph.config import STRATEGY, base_preset, default_config
from pdr_graph.connect import open_judge, open_models
from pdr_graph.extensions import Extensions
from pdr_graph.servers.llama import is_small, small_config
from pdr_graph.settings import load_settings, strategy_variables

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


def form_config(**fields: object) -> PDRConfig:
    """Return what a form shows at first: these fields, those of the environment, and our defaults.

    It is scaled down if the embedded model is to run it.
    """
    given = {**_variables(), **fields}
    if "preset" in fields:  # a graph of one strategy stays what its name says
        given = {each: given[each] for each in given if each in fields or each not in STRATEGY}
    if not is_small(load_settings()):
        return default_config(given)
    name = base_preset(given)
    return small_config(name, {each: given[each] for each in given if each != "preset"})


def steps() -> Extensions:
    """Return the judge of the settings, which weighs drafts where a run asks for weights."""
    return Extensions(judge=open_judge(load_settings()))


def _variables() -> dict[str, object]:
    lists = {"widths"}
    return {
        name: text.split(",") if name in lists else None if text.lower() == "none" else text
        for name, text in strategy_variables().items()
    }
