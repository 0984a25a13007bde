"""Parallel-Distill-Refine reasoning as a resumable LangGraph state machine.

The model is used as an improvement operator: rounds of parallel drafts, each round distilled into
a bounded textual workspace, then a refinement (arXiv 2510.01123).

    from pdr_graph import ChatVLLM, preset, solve
    result = await solve("What is 6 x 7?", preset("pdr"), model=ChatVLLM(...))

Names are imported on first use: LangGraph takes seconds to load, and a command's help should not
wait for it. Nothing is imported here: Ctrl-C shows a traceback until the command line takes it.
"""

TYPE_CHECKING = False  # type checkers read it as true; importing `typing` takes milliseconds
if TYPE_CHECKING:
    from pdr_graph.config import PRESETS, PDRConfig, preset
    from pdr_graph.embed.node import pdr_node
    from pdr_graph.embed.tool import as_tool
    from pdr_graph.errors import PDRError
    from pdr_graph.extensions import Extensions, Parts
    from pdr_graph.graph import build_graph
    from pdr_graph.llm.chat_vllm import ChatVLLM
    from pdr_graph.llm.client import ModelClient
    from pdr_graph.llm.models import Models
    from pdr_graph.run import Result, resume, solve
    from pdr_graph.run_history import history
    from pdr_graph.sync import RunStream, resume_sync, solve_sync, stream

__all__ = [
    "PRESETS",
    "ChatVLLM",
    "Extensions",
    "ModelClient",
    "Models",
    "PDRConfig",
    "PDRError",
    "Parts",
    "Result",
    "RunStream",
    "as_tool",
    "build_graph",
    "history",
    "pdr_node",
    "preset",
    "resume",
    "resume_sync",
    "solve",
    "solve_sync",
    "stream",
]

_HOMES = {
    "PRESETS": "config",
    "ChatVLLM": "llm.chat_vllm",
    "Extensions": "extensions",
    "ModelClient": "llm.client",
    "Models": "llm.models",
    "PDRConfig": "config",
    "PDRError": "errors",
    "Parts": "extensions",
    "Result": "run",
    "RunStream": "sync",
    "as_tool": "embed.tool",
    "build_graph": "graph",
    "history": "run_history",
    "pdr_node": "embed.node",
    "preset": "config",
    "resume": "run",
    "resume_sync": "sync",
    "solve": "run",
    "solve_sync": "sync",
    "stream": "sync",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
