"""What vLLM says of the tokens that it drew is what the model says of them.

The forward pass runs in vLLM's environment, which has torch and transformers.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.environment import vllm_environment
from engine.model_folder import smollm2_folder
from engine.server import ON_CPU, VLLMServer
from pdr_graph.connect import open_client
from pdr_graph.errors import LocalError
from pdr_graph.settings import load_settings
from pdr_graph.train.recorder import telling_tokens
from tests.vllm.recorded import TEMPERATURE, collected

FORWARD_PASS = Path(__file__).parents[1] / "policy" / "forward_pass.py"


@pytest.fixture(scope="module")
def telling_server(tmp_path_factory) -> Iterator[VLLMServer]:
    """Real vLLM, started as the README says for training."""
    try:
        python = vllm_environment()
        server = VLLMServer(
            python=python,
            model=smollm2_folder(python),
            log=tmp_path_factory.mktemp("vllm") / "server.log",
            name="smollm2",
            options=(
                *ON_CPU,
                *("--max-model-len", "1024", "--max-num-seqs", "16"),
                *("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
            ),
            environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
        ).start()
    except LocalError as error:
        pytest.fail(str(error))
    yield server
    server.kill()


async def test_log_probabilities_of_recorded_calls_are_those_of_a_forward_pass(
    telling_server, tmp_path
):
    """To the last bits of fp32, in every role, at a temperature that is not 1."""
    async with open_client(load_settings(base_url=telling_server.base_url)) as client:
        client.model = telling_tokens(client.model)
        rollouts = await collected(client)
    calls = [row.call for rows in rollouts.rows for row in rows]
    assert [call.role for call in calls] == ["direct"] * 3 + ["draft"] * 2 + ["refine"] * 3
    assert {call.finish_reason for call in calls} == {"stop", "length"}
    file = tmp_path / "calls.json"
    file.write_text(json.dumps([call.model_dump() for call in calls]))
    # 2**-13 is seen where the processor's kernels add in another order than the forward pass.
    assert await asyncio.to_thread(difference, telling_server, file) <= 2**-12


def difference(server: VLLMServer, calls: Path) -> float:
    """Return how far the calls' log-probabilities are from those of the served model."""
    ran = subprocess.run(
        [server.python, FORWARD_PASS, server.model, calls, str(TEMPERATURE)],
        capture_output=True,
        text=True,
        timeout=300.0,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return float(ran.stdout)
