"""pdr-graph as its command line runs it: the endpoint counts tokens, runs are stored in Valkey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

from langgraph.checkpoint.base import BaseCheckpointSaver
from pdr_checkpoints import open_checkpointer

from benchmarks.orchestration.bare import Run
from benchmarks.orchestration.load import PROBLEM, Job, Load
from benchmarks.orchestration.server import MODEL
from pdr_graph import PDRConfig, preset, solve
from pdr_graph.connect import open_client
from pdr_graph.settings import Settings


@asynccontextmanager
async def ours(load: Load, job: Job, *, stored: bool, name: str) -> AsyncIterator[Run]:
    """Give a function that does one run and returns what its ledger says."""
    settings = Settings(
        base_url=f"http://localhost:{job.port}/v1",
        model=MODEL,
        max_in_flight=load.max_in_flight,
        tokenizer=None,
        prompts=None,
    )
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_client(settings))
        saver: BaseCheckpointSaver[str] | None = None
        if stored:
            saver = await stack.enter_async_context(open_checkpointer(job.store))

        async def run(number: int) -> dict[str, Any]:
            result = await solve(
                PROBLEM,
                _config(name, load, number),
                model=client,
                checkpointer=saver,
                thread_id=f"bench-{uuid4().hex}",
            )
            ledger: dict[str, Any] = result.ledger.to_json()
            return ledger

        yield run


def _config(name: str, load: Load, number: int) -> PDRConfig:
    return preset(
        name,
        widths=load.widths,
        quorum=load.quorum,
        kappa=1024,
        solution_tokens=2048,
        max_tokens=4096,
        seed=number,
    )
