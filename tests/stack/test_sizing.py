"""A server is made as large as the strategy needs it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph import preset, solve
from pdr_graph.budget import workspace_limit
from pdr_graph.errors import ContextWindowError
from pdr_graph.servers.vllm import LEAST_CALLS, ROUNDING, size_of


async def test_a_run_fits_the_window_that_it_needs(mock, connect):
    """A window of the needed size carries a run; one that is a rounding smaller does not."""
    config = preset("pdr", widths=(2,), kappa=256, max_tokens=512, solution_tokens=128)
    problem = "What is 6 x 7? " * 40
    tokens = await connect().counter.count(problem)
    needed = size_of(config, problem_tokens=tokens, runs=1).needed
    result = await solve(problem, config, model=connect(window=needed))
    assert result.answer is not None
    with pytest.raises(ContextWindowError):
        await solve(problem, config, model=connect(window=needed - ROUNDING))


def test_a_distiller_that_asks_reads_the_whole_round():
    """A summary's prompt holds every draft; the random pick asks no model."""
    asking = size_of(preset("pdr", widths=(16,)), problem_tokens=100, runs=1)
    silent = size_of(preset("pdr", widths=(16,), distiller="random_k"), problem_tokens=100, runs=1)
    assert asking.wished > asking.needed + 16 * 1024
    assert silent.wished == silent.needed == asking.needed


def test_calls_grow_with_width_and_runs():
    """As many calls at once as all runs' widest rounds."""
    config = preset("pdr", widths=(16, 8))
    assert size_of(config, problem_tokens=1, runs=1).calls == 16
    assert size_of(config, problem_tokens=1, runs=4).calls == 64
    assert size_of(preset("long_cot"), problem_tokens=1, runs=1).calls == LEAST_CALLS


@given(
    name=st.sampled_from(["long_cot", "sr", "pdr", "majority", "genselect", "tournament"]),
    kappa=st.integers(16, 10**5),
    max_tokens=st.integers(1, 10**5),
    problem_tokens=st.integers(1, 10**5),
)
def test_the_wish_holds_the_need(name, kappa, max_tokens, problem_tokens):
    """What is wished is never less than what is needed, and both hold a whole call."""
    config = preset(name, kappa=kappa, max_tokens=max_tokens)
    size = size_of(config, problem_tokens=problem_tokens, runs=1)
    assert size.wished >= size.needed > workspace_limit(config) + max_tokens + problem_tokens
