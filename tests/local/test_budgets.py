"""Budgets for the embedded demonstration model."""

import pytest

from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.connect import EMBEDDED_WINDOW
from pdr_graph.servers.llama import announcement, small_config
from pdr_graph.strategies import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_scaled_to_the_window(name):
    """A call of every preset leaves half of the window to the problem."""
    config = small_config(name, {})
    assert config.preset == name
    assert len(config.widths) <= 2
    assert max(config.widths, default=1) <= 8
    assert config.kappa + config.max_tokens + TEMPLATE_TOKENS <= EMBEDDED_WINDOW / 2


def test_what_was_given_stays():
    """Only what the user did not set is small."""
    config = small_config("pdr", {"kappa": "500", "widths": ("3",)})
    assert (config.kappa, config.widths, config.max_tokens) == (500, (3,), 256)


def test_it_is_said():
    """The announcement names the option that ends it, and the budgets."""
    said = announcement(small_config("pdr", {}))
    assert "--base-url / PDR_BASE_URL" in said
    assert "widths 4,2, kappa 384, max_tokens 256, solution_tokens 192" in said
