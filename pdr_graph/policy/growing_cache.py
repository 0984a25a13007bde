"""Keys and values of a batch that grows by a token at a time and shrinks by rows.

The cache layer of transformers copies all of itself for each token, which for a small model is
most of the work of a step.
"""

from typing import Any

from pdr_graph.errors import ConfigError

try:
    import torch
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedConfig
    from transformers.cache_utils import DynamicLayer
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

_ROOM = 64
"""Tokens that a layer has room for beyond those that it is asked to keep."""


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer with room for tokens to come."""

    def __init__(self, **kwargs: Any) -> None:  # Any: as the base class has it
        super().__init__(**kwargs)
        self.keys: Tensor | None
        self.values: Tensor | None
        self._room: tuple[Tensor, Tensor] | None = None
        """What `keys` and `values` are the beginning of; None until the next token."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # Any: as the base class has it
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Append `[B, H, T, D]` and return all that there is, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        length = start + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < length:
            self._room = tuple(
                torch.empty(*new.shape[:2], length + _ROOM, new.shape[-1]).to(new)
                for new in (key_states, value_states)
            )
            if start:
                self._room[0][:, :, :start] = self.keys
                self._room[1][:, :, :start] = self.values
        keys, values = self._room
        keys[:, :, start:length] = key_states
        values[:, :, start:length] = value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, any of them more than once."""
        super().batch_select_indices(indices)
        self._room = None


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return an empty cache for a model; layers of other kinds than plain attention stay stock."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
