"""The peers, as their own examples call them; imported in a virtual environment of their own.

optillm is called as a library: its proxy would add a Flask server and a hop. Its methods are
synchronous, so runs at once are threads. its-hub is asynchronous. Both are given no more than the
address: what they do with concurrency, connections and limits is theirs.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from benchmarks.orchestration.load import PROBLEM, Job, Load
from benchmarks.orchestration.server import MODEL

Run = Any  # Any: a callable that does one run
SYSTEM = "You are a helpful assistant."


@contextmanager
def optillm(load: Load, job: Job, *, method: str) -> Iterator[Run]:
    """Give a function that does one run of `moa`, `bon` or `self_consistency`."""
    from openai import OpenAI
    from optillm.bon import best_of_n_sampling
    from optillm.moa import mixture_of_agents
    from optillm.self_consistency import advanced_self_consistency_approach

    logging.disable(logging.WARNING)
    methods: dict[str, Callable[..., object]] = {
        "moa": mixture_of_agents,
        "bon": best_of_n_sampling,
        "self_consistency": advanced_self_consistency_approach,
    }
    with OpenAI(base_url=f"http://localhost:{job.port}/v1", api_key="EMPTY") as client:

        def run(number: int) -> None:
            methods[method](SYSTEM, f"{number}. {PROBLEM}", client, MODEL)

        yield run


@asynccontextmanager
async def its_hub(load: Load, job: Job, *, method: str) -> AsyncIterator[Run]:
    """Give a function that does one run of `self_consistency` or `bon` with a budget of 16."""
    from its_hub import BestOfN, LLMJudge, OpenAICompatibleLanguageModel, SelfConsistency

    logging.disable(logging.WARNING)
    url = f"http://localhost:{job.port}/v1"
    async with OpenAICompatibleLanguageModel(url, "EMPTY", MODEL) as model:
        algorithm = SelfConsistency() if method == "self_consistency" else BestOfN(LLMJudge(model))

        async def run(number: int) -> None:
            await algorithm.ainfer(model, f"{number}. {PROBLEM}", budget=16)

        yield run
