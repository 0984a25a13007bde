"""The studies' model on vLLM for CPUs while a study runs (`--vllm`).

With a batch of some hundred calls, vLLM makes several times the tokens of the embedded server on a
processor that multiplies bfloat16. It runs with one thread and its engine in the server's process:
several threads wait for each other at every layer, and an engine in a process of its own spins
while it waits for its worker, which halves the speed if another program needs the cores too.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.studies.commands import say, weights_file
from engine.environment import vllm_environment
from engine.model_folder import dequantised
from engine.server import VLLMServer
from pdr_graph.errors import LocalError
from pdr_graph.servers.vllm import has_fast_bfloat16
from pdr_graph.servers.weights import QWEN

ROOT = Path(__file__).parents[2]
WINDOW = "4096"
MOST_CALLS = "256"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


@contextmanager
def endpoint(asked: Namespace) -> Iterator[None]:
    """Serve the studies' model if `asked.vllm` is set.

    Its address becomes `asked.base_url`, and its folder `asked.judge_weights`, where a study has
    that option and none was given.

    Raises:
        LocalError: it cannot be built or started.
    """
    if not asked.vllm:
        yield
        return
    python = vllm_environment()
    folder = dequantised(python, QWEN, weights_file)  # a minute at first, 2.5 GB
    asked.out.mkdir(parents=True, exist_ok=True)
    server = VLLMServer(
        python, folder, log=asked.out / "vllm.log", name=QWEN.name, options=_options(),
        environment=ENVIRONMENT,
    )  # fmt: skip
    say(f"starting vLLM (two minutes at first); its log: {server.log}")
    with server:
        asked.base_url = server.base_url
        if getattr(asked, "judge_weights", folder) is None:
            asked.judge_weights = folder
        yield


def run_study(asked: Namespace, measure: Callable[[Namespace], None]) -> int:
    """Measure with the studies' model served, and return the exit code."""
    try:
        with endpoint(asked):
            measure(asked)
    except LocalError as error:
        say(f"error: {error}")
        return 1
    return 0


def _options() -> tuple[str, ...]:
    return (
        *("--dtype", "bfloat16" if has_fast_bfloat16() else "float32"),
        # It runs for hours, which are worth the minutes of compiling.
        *("--max-model-len", WINDOW, "--max-num-seqs", MOST_CALLS, "--no-enforce-eager"),
        *("--worker-cls", "benchmarks.studies.sampling_worker.SamplingWorker"),
    )
