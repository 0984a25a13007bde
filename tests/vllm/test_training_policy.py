"""vLLM in this process as a policy of the graph.

In a process of its own, with the packages of vLLM's environment behind the trainer's: run by
`make test-train-vllm`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train-vllm")

from engine.environment import vllm_environment


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, object]:
    """What was collected from an engine in the process, twice."""
    site = next((vllm_environment().parents[1] / "lib").glob("python3*/site-packages"))
    folder = tmp_path_factory.mktemp("engine")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.vllm.policy_in_process", str(site), str(folder)],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600.0,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_graph_runs_on_an_engine_in_this_process(found):
    """Every call of both plans, within the engine's window; some end themselves."""
    assert found["roles"] == ["direct"] * 3 + ["draft"] * 2 + ["refine"] * 3
    assert found["window"] == 1024
    assert set(found["ended"]) == {"stop", "length"}


def test_its_log_probabilities_are_those_of_a_forward_pass(found):
    """To 1e-4 in fp32, the token that ended a reply included."""
    assert found["difference"] < 1e-4


def test_the_same_seed_draws_the_same_tokens(found):
    """Collected twice from the same weights."""
    assert found["same"]


def test_an_engine_whose_log_probabilities_leave_the_temperature_out_is_refused(found):
    """Its sentence says how to start one that does not."""
    assert "logprobs_mode is 'raw_logprobs'" in found["refused"]
    assert "open_engine" in found["refused"]
