"""One real vLLM on the loopback interface for all tests of this folder."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from engine.cache import say
from engine.environment import vllm_environment
from engine.metrics import Counters
from engine.model_folder import smollm2_folder
from engine.server import ON_CPU, VLLMServer
from pdr_graph import ChatVLLM, ModelClient
from pdr_graph.connect import open_client
from pdr_graph.errors import LocalError
from pdr_graph.settings import load_settings

WINDOW = 1024
"""Context window that the server is started with, in tokens."""
AT_ONCE = 16
"""Requests that the server works on at the same time."""
BLOCK = 32
"""Tokens in a block of the prefix cache; the smallest that vLLM's CPU attention takes."""
PROBLEM = "Tom has 3 boxes with 4 apples in each box. How many apples does Tom have?"
TINY = {"max_tokens": 12, "solution_tokens": 16, "kappa": 32, "seed": 5, "k": 2}

_FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in this folder; it runs when `make test-vllm` asks for it."""
    skipped = pytest.mark.skip(reason="needs a real vLLM: make test-vllm")
    for item in items:
        if _FOLDER in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not os.environ.get("PDR_TEST_VLLM"):
                item.add_marker(skipped)


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[VLLMServer]:
    """Real vLLM with SmolLM2, healthy; killed at the end."""
    try:
        python = vllm_environment()
        options = (
            *ON_CPU,
            *("--max-model-len", str(WINDOW), "--max-num-seqs", str(AT_ONCE)),
            *("--block-size", str(BLOCK)),
            *("--scheduling-policy", "priority", "--reasoning-parser", "deepseek_v3"),
            *(
                "--reasoning-config",
                '{"reasoning_start_str": "<think>", "reasoning_end_str": "</think>"}',
            ),
        )
        started = VLLMServer(
            python=python,
            model=smollm2_folder(python),
            log=tmp_path_factory.mktemp("vllm") / "server.log",
            name="smollm2",
            options=options,
            environment={"VLLM_CPU_KVCACHE_SPACE": "1"},
        )
        say("starting vLLM (about a minute)")
        started.start()
    except LocalError as error:
        pytest.fail(str(error))
    yield started
    started.kill()


@pytest.fixture
async def client(server) -> AsyncIterator[ModelClient]:
    """A client of the server, made the way the command line makes it."""
    async with open_client(load_settings(base_url=server.base_url)) as connected:
        yield connected


@pytest.fixture
async def chat(server) -> AsyncIterator[Callable[..., ChatVLLM]]:
    """Makes chat models of the server; their connections are closed after the test."""
    made = []

    def make(**fields: object) -> ChatVLLM:
        made.append(ChatVLLM(base_url=server.base_url, model=server.name, **fields))
        return made[-1]

    yield make
    for model in made:
        await model.aclose()


async def eventually(holds: Callable[[], bool], *, within_s: float = 15.0) -> bool:
    """Ask again until it holds or the time is over: vLLM counts a moment after it answers."""
    deadline = time.monotonic() + within_s
    while not await asyncio.to_thread(holds):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1)
    return True


async def counted_since(server: VLLMServer, before: Counters, expected_prompt: int) -> Counters:
    """Return the change of the server's counters, once it has caught up or 15 s are over."""
    await eventually(lambda: (server.counters() - before).prompt_tokens >= expected_prompt)
    await asyncio.sleep(0.2)
    return server.counters() - before
