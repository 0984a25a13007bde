"""The size of a server, and what the machine has."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph import preset, solve
from pdr_graph.budget import workspace_limit
from pdr_graph.errors import ContextWindowError
from pdr_graph.servers.vllm import (
    LEAST_CALLS,
    ROUNDING,
    gpus,
    has_fast_bfloat16,
    size_of,
)

H100 = "NVIDIA H100 80GB HBM3"


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


@pytest.fixture
def smi(tmp_path: Path) -> str:
    script = tmp_path / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\n"
        "echo '0, GPU-aa11, NVIDIA H100 80GB HBM3'\n"
        "echo '1, GPU-bb22, NVIDIA H100 80GB HBM3'\n"
    )
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("visible", "number"), [(None, 2), ("0", 1), ("0,1", 2), ("GPU-bb", 1), ("", 0), ("-1", 0)]
)
def test_gpus_that_a_process_would_see(smi, visible, number):
    """CUDA_VISIBLE_DEVICES hides GPUs by index or by the beginning of their name."""
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert gpus(environment, smi) == [H100] * number


def test_no_driver(tmp_path):
    """Without the program, or where it fails, there is no GPU."""
    failing = tmp_path / "smi"
    failing.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    failing.chmod(0o755)
    assert gpus({}, str(tmp_path / "none")) == []
    assert gpus({}, str(failing)) == []


def test_the_processor(tmp_path):
    """Its flags are those of /proc; a machine without it tells nothing."""
    file = tmp_path / "file"
    assert not has_fast_bfloat16(file)
    file.write_text("flags : fpu avx2 avx512_bf16\n")
    assert has_fast_bfloat16(file)
