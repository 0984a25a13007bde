"""One worker of an evaluation that is spread over a cluster: an event loop that runs samples.

It is handed all that it needs by value, and gives back what came of each sample; nothing of it
touches the run folder, which may be on another machine. It holds each thread under the store's
lease, so that what another worker takes over is written by nobody else. Knows nothing of Ray.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl

from pdr_graph.connect import open_client
from pdr_graph.errors import CallError, DrainedError, PDRError, QuorumError
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Score
from pdr_graph.eval.records import SampleRecord
from pdr_graph.eval.runner import Claim
from pdr_graph.eval.sample import Facts, Lab, Sample
from pdr_graph.extensions import Extensions
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts
from pdr_graph.settings import Settings
from pdr_graph.trace import NoTrace, TraceRecord

Saver = BaseCheckpointSaver[str]
OpenStore = Callable[[Settings], AbstractAsyncContextManager[Saver]]


@dataclass(frozen=True, slots=True)
class Kit:
    """What a worker is made of; every field can be pickled."""

    settings: Settings
    open_store: OpenStore
    claim: Callable[[Saver], Claim | None]
    """Makes what holds a thread against other workers, waiting for the lease of a dead one."""
    answer: str
    """Kind of answer."""
    score: Score | None
    templates: Mapping[str, str]
    """The prompts."""
    facts: Facts
    traced: bool


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """What came of a sample; exactly one of the first four is set."""

    record: SampleRecord | None = None
    failure: tuple[SampleRecord, str] | None = None
    """The record of a sample that failed, and why in a sentence."""
    error: str | None = None
    """Why this worker can go on with no sample at all."""
    left: bool = False
    """It was asked to stop, or another process has the thread: the sample is still owed."""
    calls: list[TraceRecord] = field(default_factory=list)
    """Every model call in full, if they are traced."""


@dataclass(slots=True)
class _Collected:
    """A trace that is sent to where the run folder is."""

    calls: list[TraceRecord] = field(default_factory=list)

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self.calls.append(call)


class Worker:
    """Runs samples side by side, each as a thread of the store."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._control = RunControl()
        self._opening = asyncio.Lock()
        self._held = AsyncExitStack()
        self._lab: Lab | None = None
        self._claim: Claim | None = None

    async def open(self) -> dict[str, str]:
        """Connect to model and store, and say what this worker is; again after a restart.

        Returns:
            `host`, `pid`, `version`, and `error` where it cannot work.
        """
        about = {
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "version": version("pdr-graph"),
        }
        try:
            await self._ready()
        except PDRError as error:
            about["error"] = str(error)
        return about

    async def run(self, sample: Sample) -> WorkerOutcome:
        """Start a sample, or go on with it, to its end."""
        try:
            lab = await self._ready()
            async with AsyncExitStack() as held:
                claim = self._claim
                if claim and not await held.enter_async_context(claim(sample.thread_id)):
                    return WorkerOutcome(left=True)
                return await self._attempt(lab, sample)
        except PDRError as error:
            return WorkerOutcome(error=str(error))

    async def drain(self) -> None:
        """Stop every sample at its next step, from where it can be gone on with."""
        self._control.request_drain()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._held.aclose()

    async def _attempt(self, lab: Lab, sample: Sample) -> WorkerOutcome:
        trace = _Collected() if self._kit.traced else NoTrace()
        mine = replace(lab, parts=replace(lab.parts, trace=trace))
        calls = trace.calls if isinstance(trace, _Collected) else []
        try:
            return WorkerOutcome(record=await mine.run(sample, lambda event: None), calls=calls)
        except (CallError, QuorumError) as error:
            return WorkerOutcome(
                failure=(await mine.failed(sample, error), str(error)), calls=calls
            )
        except DrainedError:
            return WorkerOutcome(left=True, calls=calls)

    async def _ready(self) -> Lab:
        async with self._opening:
            if self._lab is None:
                kit = self._kit
                saver = await self._held.enter_async_context(kit.open_store(kit.settings))
                client = await self._held.enter_async_context(open_client(kit.settings))
                self._claim = kit.claim(saver)
                self._lab = Lab(
                    client=client,
                    saver=saver,
                    judge=Judge.of_kind(kit.answer, kit.score),
                    extensions=Extensions(),
                    parts=Parts(prompts=Prompts(dict(kit.templates)), control=self._control),
                    facts=kit.facts,
                )
            return self._lab
