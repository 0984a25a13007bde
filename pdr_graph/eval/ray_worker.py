"""One worker of an evaluation on a cluster: an event loop that runs samples.

A worker gets all that it needs by value and returns what came of each sample. It never touches the
run folder, which may be on another machine. It holds each thread under the store's lease, so that
two workers never write to one thread. This module does not need Ray.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl

from pdr_graph.connect import open_client
from pdr_graph.errors import DrainedError, PDRError
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.records import SampleRecord
from pdr_graph.eval.runner import Claim
from pdr_graph.eval.sample import LocalExecutor, RunFacts, Sample
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts
from pdr_graph.settings import Settings
from pdr_graph.trace import TraceRecord

Saver = BaseCheckpointSaver[str]
OpenStore = Callable[[Settings], AbstractAsyncContextManager[Saver]]


@dataclass(frozen=True, slots=True)
class WorkerKit:
    """What a worker is made of; every field can be pickled."""

    settings: Settings
    open_store: OpenStore
    claim: Callable[[Saver], Claim | None]
    """Makes the claim on a thread, which waits for the lease of a dead worker to run out."""
    judge: Judge
    prompts: Prompts
    facts: RunFacts
    traced: bool
    """Whether model calls are returned in full."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What came of a sample.

    Without record and error it is still owed: the worker was asked to stop, or another process has
    the thread.
    """

    record: SampleRecord | None
    """Of a finished sample, failed or not."""
    error: str | None
    """Why this worker cannot run any sample, in a sentence."""
    calls: list[TraceRecord]
    """Every model call in full, if `traced`."""


@dataclass(slots=True)
class _CollectedTrace:
    """Keeps the calls of a sample until they are returned."""

    calls: list[TraceRecord] = field(default_factory=list)

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self.calls.append(call)


class Worker:
    """Runs samples side by side, each in a thread of the store."""

    def __init__(self, kit: WorkerKit) -> None:
        self._kit = kit
        self._control = RunControl()
        self._opening = asyncio.Lock()
        self._held = AsyncExitStack()
        self._executor: LocalExecutor | None = None
        self._claim: Claim | None = None

    async def open(self) -> dict[str, str]:
        """Connect to model and store.

        Returns:
            `host`, `version`; and `error`, a sentence, if the worker cannot work.
        """
        about = {"host": socket.gethostname(), "version": version("pdr-graph")}
        try:
            await self._ready()
        except PDRError as error:
            about["error"] = str(error)
        return about

    async def run(self, sample: Sample) -> WorkerOutcome:
        """Run a sample to its end, from its last checkpoint if it was begun before."""
        trace = _CollectedTrace()
        record, why = None, None
        try:
            # A worker that Ray restarted is not open yet.
            executor = await self._ready()
            if self._kit.traced:
                executor = replace(executor, parts=replace(executor.parts, trace=trace))
            async with AsyncExitStack() as held:
                claim = self._claim
                if not claim or await held.enter_async_context(claim(sample.thread_id)):
                    record = await executor.run(sample, lambda event: None)
        except DrainedError:
            pass
        except PDRError as error:
            why = str(error)
        return WorkerOutcome(record, why, trace.calls)

    async def drain(self) -> None:
        """Stop every sample at its next step; it can be resumed from there."""
        self._control.request_drain()

    async def close(self) -> None:
        """Close the connections."""
        await self._held.aclose()

    async def _ready(self) -> LocalExecutor:
        async with self._opening:
            if self._executor is None:
                kit = self._kit
                saver = await self._held.enter_async_context(kit.open_store(kit.settings))
                client = await self._held.enter_async_context(open_client(kit.settings))
                self._claim = kit.claim(saver)
                self._executor = LocalExecutor(
                    client=client,
                    saver=saver,
                    judge=kit.judge,
                    parts=Parts(prompts=kit.prompts, control=self._control),
                    facts=kit.facts,
                )
            return self._executor
