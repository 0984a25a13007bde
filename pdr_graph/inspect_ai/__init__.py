"""PDR as a solver of inspect-ai: `inspect eval TASK --solver pdr_graph/pdr -S preset=majority`.

inspect-ai finds the solver by its entry point. Models, usage, limits, epochs, retries, cache and
logs are inspect-ai's own; every call of a run is a model event of its sample. It needs the extra
`inspect`. Source:
https://inspect.aisi.org.uk/extensions.html
"""

try:
    import inspect_ai as _inspect_ai  # noqa: F401
except ImportError:
    raise ImportError("the solver needs inspect-ai: pip install 'pdr-graph[inspect]'") from None

from pdr_graph.inspect_ai.solver import pdr

__all__ = ["pdr"]
