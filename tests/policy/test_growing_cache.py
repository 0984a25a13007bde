"""The cache with room holds what the stock cache holds."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from transformers import Qwen2Config
from transformers.cache_utils import DynamicLayer

from pdr_graph.policy.generation import GrowingLayer, growing_cache


def states(rows: int, tokens: int):
    return torch.randn(rows, 2, tokens, 3), torch.randn(rows, 2, tokens, 3)


def test_it_holds_the_same_keys_and_values_step_by_step():
    """Prompt, tokens beyond its room, rows that leave and rows that are doubled."""
    torch.manual_seed(0)
    ours, stock = GrowingLayer(), DynamicLayer()

    def both(rows: int, tokens: int) -> None:
        new = states(rows, tokens)
        for mine, theirs in zip(ours.update(*new), stock.update(*new), strict=True):
            assert torch.equal(mine, theirs)
        assert ours.get_seq_length() == stock.get_seq_length()
        assert ours.get_mask_sizes(1) == stock.get_mask_sizes(1)

    both(2, 5)
    for layer in (ours, stock):
        layer.batch_select_indices(torch.tensor([0, 1, 1, 0]))
    for _ in range(150):
        both(4, 1)
    for layer in (ours, stock):
        layer.batch_select_indices(torch.tensor([3, 1]))
    for _ in range(10):
        both(2, 1)


def test_a_token_more_copies_nothing():
    """As long as there is room, keys stay where they are."""
    layer = GrowingLayer()
    layer.update(*states(2, 5))
    place = layer.keys.data_ptr()
    for _ in range(20):
        layer.update(*states(2, 1))
    assert layer.keys.data_ptr() == place


def test_layers_of_other_kinds_stay_as_they_are():
    """A window that slides is the library's own."""
    plain = growing_cache(Qwen2Config(num_hidden_layers=2))
    sliding = growing_cache(
        Qwen2Config(
            num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1
        )
    )
    assert [type(layer) for layer in plain.layers] == [GrowingLayer] * 2
    assert [isinstance(layer, GrowingLayer) for layer in sliding.layers] == [True, False]
