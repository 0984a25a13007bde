"""The embedded defaults: a real model and a real store on a machine where nothing is set up.

Both are servers in processes of their own, started on demand and ended when nobody needs them.
What they need is the extra `local`, imported only where it is used. Names are imported on first
use: the servers' own processes are in this package too, and have to start fast.

The servers that `pdr-graph up` starts on this machine, and `pdr-graph down` ends.

Each part, the model and the store, has a *keeper*: a process of its own that starts the server,
waits until it answers, writes down how it is, and ends it when asked. The command that started a
keeper may be killed at any instant, since whatever is known is known to the keeper:

- `PART.lock` is held by the keeper, and dropped by the kernel with it.
- `PART.json` is the keeper's record: the state, the address, the processes with their start times.
- `PART.log` is what keeper and server said.

A server dies with its keeper (Linux tells it by a signal); where it does not, the record names it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdr_graph.servers.data_dir import default_data_dir
    from pdr_graph.servers.embedded_store import embedded_valkey
    from pdr_graph.servers.llama import Endpoint, embedded_model
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
    "embedded_valkey": "embedded_store",
    "fetch_weights": "weights",
    "find_weights": "weights",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
