"""The comparison that `make bench-gpu` makes, small, on vLLM for CPUs."""

import asyncio

from benchmarks.gpu.arms import make_problems, matched_arms, run_arm
from tests.vllm.conftest import WINDOW


def test_the_arms_are_run_and_counted(server):
    """Each arm states what vLLM counted for it, and the allotments match."""
    arms = matched_arms((2,), 24, kappa=32, window=WINDOW)
    rows = {
        name: asyncio.run(run_arm(server, config, make_problems(2), at_once=2))
        for name, config in arms.items()
    }
    assert rows["pdr"]["b_seq_nominal"] == rows["long_cot"]["b_seq_nominal"] == 3 * 24
    assert rows["pdr"]["b_total_nominal"] == rows["majority"]["b_total_nominal"] == 4 * 24
    for row in rows.values():
        tokens = row["prompt_tokens"] + row["completion_tokens"]
        assert row["b_total"] * row["problems"] == tokens
        assert row["failed"] == 0
        assert row["completion_tokens_per_s"] > 0
