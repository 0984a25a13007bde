"""The embedded defaults: a real model and a real store on a machine where nothing is set up.

Both are servers in processes of their own, started on demand and ended when nobody needs them.
What they need is the extra `local`, imported only where it is used. Names are imported on first
use: the servers' own processes are in this package too, and have to start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdr_graph.local.data_dir import default_data_dir
    from pdr_graph.local.model import Endpoint, embedded_model
    from pdr_graph.local.valkey.client import embedded_valkey
    from pdr_graph.local.weights import fetch_weights, find_weights

__all__ = [
    "Endpoint",
    "default_data_dir",
    "embedded_model",
    "embedded_valkey",
    "fetch_weights",
    "find_weights",
]

_HOMES = {
    "Endpoint": "model",
    "default_data_dir": "data_dir",
    "embedded_model": "model",
    "embedded_valkey": "valkey.client",
    "fetch_weights": "weights",
    "find_weights": "weights",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
