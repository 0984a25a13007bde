"""Carries runs out: admitted, alone on their thread, resumed where they were left.

Where runs are kept, as whoever starts the server hands it in.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl

from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import DrainedError
from pdr_graph.events import OnEvent
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.tokens import wellformed
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts, Result, resume, solve, with_input
from pdr_graph.serve.admission import Admission
from pdr_graph.serve.metrics import Metrics
from pdr_graph.serve.refusal import RefusalError, thread_busy
from pdr_graph.serve.request import SolveRequest


@asynccontextmanager
async def unguarded(thread_id: str) -> AsyncIterator[None]:
    """Guard nothing: for stores that no other process shares."""
    yield


@dataclass(frozen=True, slots=True)
class RunStore:
    """A checkpoint store and the right to run a thread of it."""

    saver: BaseCheckpointSaver[str]
    alone: Callable[[str], AbstractAsyncContextManager[None]] = unguarded
    """Keeps other processes from running a thread; raises `RefusalError` where one does."""
    keeps_unnamed: bool = True
    """Whether runs are kept whose client has not named them; a store in memory would only grow."""


OnBegin = Callable[[PDRConfig], None]
"""Told the config of the run before its first event: that of the record for a resumed one."""


@dataclass(slots=True)
class SolveRunner:
    """The runs of one server."""

    model: ModelClient
    store: RunStore
    admission: Admission
    metrics: Metrics
    prompts: Prompts = field(default_factory=Prompts.load)
    _controls: dict[str, RunControl] = field(default_factory=dict)
    """Of the runs that go on, by thread."""
    _tasks: set[asyncio.Task[object]] = field(default_factory=set)
    _stopped: bool = False
    """Whether runs are cancelled by this server, and not by their clients."""

    async def carry_out(self, asked: SolveRequest, begin: OnBegin, on_event: OnEvent) -> Result:
        """Run to the end, from wherever the thread is.

        Raises:
            RefusalError: no place, or the thread is busy or holds another problem.
            DrainedError: the server stops.
            PDRError: as `solve` and `resume`.
        """
        try:
            return await self._carry_out(asked, begin, on_event)
        except asyncio.CancelledError:
            if self._stopped:
                raise DrainedError(asked.thread_id) from None
            raise

    async def _carry_out(self, asked: SolveRequest, begin: OnBegin, on_event: OnEvent) -> Result:
        async with (
            self.admission.place(),
            self._claimed(asked.thread_id) as control,
        ):
            kept = asked.named or self.store.keeps_unnamed
            parts = Parts(
                prompts=self.prompts,
                trace=self.metrics,
                on_event=on_event,
                control=control,
            )
            if not kept:
                return await self._start(asked, begin, parts, kept=False)
            async with self.store.alone(asked.thread_id):
                recorded = await self._recorded(asked) if asked.named else None
                if recorded is None:
                    return await self._start(asked, begin, parts, kept=True)
                begin(recorded)
                return await resume(
                    asked.thread_id,
                    model=self.model,
                    checkpointer=self.store.saver,
                    changes=asked.insisted,
                    parts=replace(parts, stream_answer=streams(recorded)),
                )

    def can_resume(self, asked: SolveRequest) -> bool:
        """Tell whether a client can go on with this run later."""
        return asked.named or self.store.keeps_unnamed

    def drain(self) -> None:
        """Take no more requests, and stop the runs at their next step."""
        self.admission.close()
        for control in self._controls.values():
            control.request_drain()

    def cancel(self) -> None:
        """Stop the runs that still go on at once; their clients are told how to go on."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()

    async def ended(self) -> None:
        """Wait until no run goes on and all calls are closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(
        self, asked: SolveRequest, begin: OnBegin, parts: Parts, *, kept: bool
    ) -> Result:
        begin(asked.config)
        return await solve(
            asked.problem,
            asked.config,
            model=self.model,
            checkpointer=self.store.saver if kept else None,
            thread_id=asked.thread_id,
            parts=replace(parts, stream_answer=streams(asked.config)),
        )

    @asynccontextmanager
    async def _claimed(self, thread_id: str) -> AsyncIterator[RunControl]:
        if thread_id in self._controls:
            raise thread_busy(thread_id)
        control = self._controls[thread_id] = RunControl()
        task = asyncio.current_task()
        assert task is not None  # we are in a coroutine
        self._tasks.add(task)
        try:
            yield control
        finally:
            self._tasks.discard(task)
            del self._controls[thread_id]

    async def _recorded(self, asked: SolveRequest) -> PDRConfig | None:
        """Return the config that the thread was started with, None for a new thread.

        Raises:
            RefusalError: it holds another problem, whose answer is not this client's.
        """
        place = RunnableConfig(configurable={"thread_id": asked.thread_id, "checkpoint_ns": ""})
        state = await with_input({}, place, self.store.saver)
        if not state:
            return None
        problem, config = state.get("problem", ""), state.get("config")
        if config is None or problem.strip() != wellformed(asked.problem).strip():
            raise RefusalError(
                409,
                f"thread {asked.thread_id!r} holds a run of another problem; send the messages "
                "that it was started with, or name another thread",
                param="metadata.thread_id",
                code="thread_differs",
            )
        return make_config(**config)


def streams(config: PDRConfig) -> bool:
    """Tell whether the refinement may be sent while it is written: no verdict can undo it."""
    return config.max_extra_rounds == 0
