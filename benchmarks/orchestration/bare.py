"""The bare client: the calls of a run and nothing else, on the HTTP library that we use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from benchmarks.orchestration.load import PROBLEM, Job, Load
from benchmarks.orchestration.server import MODEL

Run = Any  # Any: a callable whose result is a run's own account of tokens, or None


@asynccontextmanager
async def bare(load: Load, job: Job) -> AsyncIterator[Run]:
    """Give a function that makes the calls of one PDR run: waves of drafts, summaries, a finish."""
    url = f"http://localhost:{job.port}/v1/chat/completions"
    slots = asyncio.Semaphore(load.max_in_flight)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=1024)
    async with httpx2.AsyncClient(timeout=None, limits=limits) as http:

        async def call(text: str, seed: int) -> str:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": 4096,
                "temperature": 1.0,
                "top_p": 1.0,
                "seed": seed,
            }
            async with slots:
                reply = await http.post(url, json=body, headers={"authorization": "Bearer EMPTY"})
            content: str = reply.raise_for_status().json()["choices"][0]["message"]["content"]
            return content

        async def run(number: int) -> None:
            workspace = ""
            for width in load.widths:
                prompt = PROBLEM + workspace
                drafts = await asyncio.gather(*(call(prompt, number + n) for n in range(width)))
                workspace = await call(PROBLEM + "\n".join(drafts), number)
            await call(PROBLEM + workspace, number)

        yield run
