"""The server on a real socket, in the test's own loop: the mock endpoint is behind it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass

import openai
import pytest
from langgraph.checkpoint.memory import InMemorySaver

from pdr_graph.config import preset
from pdr_graph.serve.app import create_app
from pdr_graph.serve.options import ServeOptions
from pdr_graph.serve.request import Catalogue
from pdr_graph.serve.runner import RunStore, SolveRunner
from pdr_graph.serve.server import SolveServer, address_of, listen
from tests.cli.conftest import clean, data_dir, spawn

__all__ = ["clean", "data_dir", "spawn"]

SMALL = "pdr?widths=3,2"
CALLS = 3 + 1 + 2 + 1 + 1
"""What a run of that size asks for."""
ASK = [{"role": "user", "content": "What is 17 + 25?"}]


@dataclass(frozen=True)
class Served:
    """One running server."""

    url: str
    runner: SolveRunner
    server: SolveServer
    running: asyncio.Task[None]
    client: openai.AsyncOpenAI

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve(connect) -> AsyncIterator[Serve]:
    """Starts servers in front of the mock endpoint; they are stopped after the test."""
    started: list[Served] = []

    async def start(
        saver=None, defaults=None, client=None, keeps_unnamed=True, alone=nullcontext, **fields
    ) -> Served:
        options = ServeOptions(port=0, _env_file=None, **fields)
        runner = SolveRunner(
            client or connect(window=131_072),
            RunStore(saver or InMemorySaver(), alone, keeps_unnamed),
            options,
        )
        catalogue = Catalogue(
            lambda name, given: preset(name, **given),
            defaults or {},
            max_drafts=options.max_drafts,
        )
        app = create_app(runner, catalogue, options)
        server = SolveServer(
            app, runner, drain_s=options.drain_s, say=lambda line: None, options=options
        )
        listener = listen(options.host, options.port)
        url = address_of(listener)
        key = options.key.get_secret_value().split()[0] if options.key else "none"
        served = Served(
            url,
            runner,
            server,
            asyncio.create_task(server.run(listener)),
            openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0),
        )
        started.append(served)
        ended, _ = await asyncio.wait({served.running}, timeout=0.02)
        assert not ended, served.running.exception()  # a dead one leaves its clients waiting
        return served

    yield start
    for each in started:
        await each.client.close()
        each.server.stop()
        each.server.stop()
        await each.running
