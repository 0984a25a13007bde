"""vLLM and the trainer in one process, weights handed over in memory.

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


@pytest.mark.parametrize("kind", ["tied", "untied", "lora"])
def test_an_engine_in_this_process_draws_as_the_trainer_scores(tmp_path, kind):
    """At every step where weights are pushed, and not where they are withheld.

    A tied head too, which a reload alone would leave as it was; and an adapter, merged.
    """
    site = next((vllm_environment().parents[1] / "lib").glob("python3*/site-packages"))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.vllm.colocated", str(site), str(tmp_path), kind],
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
        timeout=1800.0,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["versions"] == [0, 1, 2]
    assert found["largest"] < 1e-4
    assert found["tripped_at"] == 1
    assert found["withheld"] > 1e-2
