"""Draws are of the whole distribution, of each row by itself; the cache holds what it should."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config
from transformers.cache_utils import DynamicLayer

from pdr_graph.policy import generation
from pdr_graph.policy.generation import GrowingLayer, growing_cache, sample

logit_lists = st.lists(st.floats(-20, 20), min_size=1, max_size=40)
uniforms = st.floats(0.0, 1.0, exclude_max=True)


def draw(logits, temperature, uniform):
    """Draw one token of one row."""
    tokens, logprobs = sample(
        torch.tensor([logits]), torch.tensor([temperature]), torch.tensor([uniform]).double()
    )
    return tokens.item(), logprobs.item()


@given(logits=logit_lists, temperature=st.floats(0.1, 2.0))
def test_each_token_is_drawn_as_often_as_it_is_probable(logits, temperature):
    """Over numbers that fill [0, 1) evenly, to the number's own step: none is left out."""
    num = 4000
    rows = torch.tensor([logits] * num)
    places = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    tokens, _ = sample(rows, torch.full((num,), temperature), places)
    shares = torch.bincount(tokens, minlength=len(logits)) / num
    expected = torch.softmax(torch.tensor(logits).double() / temperature, -1)
    assert (shares - expected).abs().max() <= 1.0 / num + 1e-6


@given(logits=logit_lists, temperature=st.floats(0.1, 2.0), uniform=uniforms)
def test_the_log_probability_is_that_of_the_distribution_drawn_from(logits, temperature, uniform):
    """Its temperature included."""
    token, logprob = draw(logits, temperature, uniform)
    scaled = [each / temperature for each in logits]
    total = math.fsum(math.exp(each - max(scaled)) for each in scaled)
    assert logprob == pytest.approx(scaled[token] - max(scaled) - math.log(total), abs=1e-4)


@given(logits=logit_lists, uniform=uniforms)
def test_temperature_0_takes_the_most_likely_token(logits, uniform):
    """Whatever the number; its log-probability is that of temperature 1."""
    token, logprob = draw(logits, 0.0, uniform)
    assert logits[token] == pytest.approx(max(logits), abs=1e-5)
    assert logprob == pytest.approx(draw(logits, 1.0, 0.5)[1], abs=50)
    table = torch.tensor(logits).log_softmax(-1)
    assert logprob == pytest.approx(table[token].item(), abs=1e-6)


@given(st.lists(st.tuples(logit_lists, uniforms), min_size=2, max_size=6))
def test_a_row_is_drawn_as_if_it_were_alone(rows):
    """Rows of one batch do not move one another."""
    longest = max(len(logits) for logits, _ in rows)
    padded = [logits + [-math.inf] * (longest - len(logits)) for logits, _ in rows]
    numbers = torch.tensor([uniform for _, uniform in rows]).double()
    tokens, _ = sample(torch.tensor(padded), torch.ones(len(rows)), numbers)
    alone = [draw(logits, 1.0, uniform)[0] for logits, uniform in zip(padded, numbers, strict=True)]
    assert tokens.tolist() == alone


def test_a_token_without_probability_is_never_drawn():
    """Not by the smallest number, nor by the largest."""
    logits = [-math.inf, 0.0, -math.inf, 0.0, -math.inf]
    assert draw(logits, 1.0, 0.0)[0] == 1
    assert draw(logits, 1.0, 0.5)[0] == 3
    assert draw(logits, 1.0, 1.0 - 2**-53)[0] == 3


def test_a_large_vocabulary_is_drawn_a_few_rows_at_a_time():
    """With the same tokens, in an amount of memory that does not grow with the batch."""
    torch.manual_seed(0)
    width = generation._MOST_NUMBERS // 2 + 1  # one row at a time
    logits = torch.randn(2, width)
    numbers = torch.tensor([0.25, 0.75]).double()
    tokens, logprobs = sample(logits, torch.ones(2), numbers)
    whole = logits.log_softmax(-1)
    assert tokens.shape == logprobs.shape == (2,)
    assert logprobs.tolist() == pytest.approx(whole[range(2), tokens].tolist(), abs=1e-6)


# ------------------------------------------------------------------------------ the cache


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
