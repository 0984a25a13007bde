"""The embedded parts, held open by a keeper."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pdr_graph.errors import LocalError
from pdr_graph.local import embedded_model, embedded_valkey
from pdr_graph.local.data_dir import Announce
from pdr_graph.stack.plan import TITLES, Plan
from pdr_graph.stack.served import Served, answers

MISSES = 5
"""Looks in a row, a second or more apart, after which a server that does not answer is dead."""


@asynccontextmanager
async def embedded(plan: Plan, data_dir: Path, announce: Announce) -> AsyncIterator[Served]:
    """Hold an embedded part for as long as the context lasts.

    Raises:
        LocalError: it is not to be had, or does not start.
    """
    if plan.kind == "embedded valkey":
        async with embedded_valkey(
            data_dir, announce=announce, startup_timeout_s=plan.timeout_s
        ) as url:
            yield Served(url, "", _Watch(url, plan))
        return
    file = plan.settings.get("model_file")
    async with embedded_model(
        data_dir,
        slots=int(plan.settings["slots"]),
        context_per_slot=int(plan.settings["context_per_slot"]),
        port=int(plan.settings["port"]),
        model_file=None if file is None else Path(file),
        served_name=plan.model,
        announce=announce,
        startup_timeout_s=plan.timeout_s,
    ) as endpoint:
        yield Served(endpoint.base_url, endpoint.model, _Watch(endpoint.base_url, plan))


class _Watch:
    """Looks whether a server still answers."""

    def __init__(self, url: str, plan: Plan) -> None:
        self.url = url
        self.title = TITLES[plan.kind]
        self.misses = 0

    async def __call__(self) -> None:
        well = await asyncio.to_thread(answers, self.url)
        self.misses = 0 if well else self.misses + 1
        if self.misses >= MISSES:
            raise LocalError(f"{self.title} at {self.url} answers no more")
