"""The servers of this machine: those of `pdr-graph up`, and the embedded model and store.

The embedded ones are a real model and a real store for a machine where nothing is set up. Their
processes are started on demand and end when nobody needs them. They need the extra `local`, which
is imported
only where it is used. Names are imported on first use, since the processes of the servers are
modules of this package and have to start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdr_graph.servers.data_dir import default_data_dir
    from pdr_graph.servers.llama import Endpoint, embedded_model
    from pdr_graph.servers.valkey import embedded_valkey
    from pdr_graph.servers.weights import fetch_weights, find_weights

__all__ = [
    "Endpoint",
    "default_data_dir",
    "embedded_model",
    "embedded_valkey",
    "fetch_weights",
    "find_weights",
]

_HOMES = {
    "Endpoint": "llama",
    "default_data_dir": "data_dir",
    "embedded_model": "llama",
    "embedded_valkey": "valkey",
    "fetch_weights": "weights",
    "find_weights": "weights",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
