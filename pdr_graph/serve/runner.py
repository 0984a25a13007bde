"""The runs of one server: bounded, one to a thread, counted, and stopped to be resumed."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from time import perf_counter

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pdr_graph.budget import elapsed_s
from pdr_graph.config import PDRConfig
from pdr_graph.errors import DrainedError, counted
from pdr_graph.events import OnEvent
from pdr_graph.extensions import Extensions
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models
from pdr_graph.llm.tokens import wellformed
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts, Result, resume, solve, with_input
from pdr_graph.serve.options import ServeOptions
from pdr_graph.serve.refusal import RefusalError, RefusalLog, shutting_down, thread_busy
from pdr_graph.serve.request import SolveRequest
from pdr_graph.state import reading, stored_config
from pdr_graph.trace import TraceRecord

LONGEST_RETRY_S = 60
"""Longest wait that a Retry-After header names."""


class Admission:
    """Admits a bounded number of requests at a time, first come first served."""

    def __init__(self, *, max_runs: int, max_waiting: int) -> None:
        self._max_runs = max_runs
        self._max_waiting = max_waiting
        self._places = asyncio.Semaphore(max_runs)
        self._run_s = 1.0
        """Moving average of the seconds that a run takes."""
        self.running = 0
        """Requests that were admitted and have not ended."""
        self.waiting = 0
        """Requests that wait for their turn."""
        self.closed = False
        """Whether no more requests are admitted."""

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the places for as long as the block lasts; wait for it if all are taken.

        Raises:
            RefusalError: 429 where too many requests wait, 503 where the server shuts down.
        """
        if self.closed:
            raise shutting_down()
        if self._places.locked() and self.waiting >= self._max_waiting:
            raise self._full()
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        if self.closed:
            raise shutting_down()
        self.running += 1
        began = perf_counter()
        try:
            yield
        finally:
            self._run_s += 0.2 * (perf_counter() - began - self._run_s)
            self.running -= 1
            self._places.release()

    def close(self) -> None:
        """Reject waiting and new requests; running ones finish."""
        self.closed = True
        for _ in range(self.waiting):
            self._places.release()  # wakes a waiting request, which finds the server closed

    def _full(self) -> RefusalError:
        ahead = (self.waiting + 1) / self._max_runs
        return RefusalError(
            429,
            f"the server is full: {counted(self.running, 'request')} in progress, "
            f"{self.waiting} waiting; try again later",
            code="server_busy",
            retry_after_s=min(LONGEST_RETRY_S, max(1, math.ceil(self._run_s * ahead))),
        )


_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
_TOKENS = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


class Metrics:
    """What Prometheus reads of one server; a `Trace`, so that runs report their calls to it.

    Tokens are counted as calls end, those of failed and resumed runs included, so that their sum is
    what this process has asked of the endpoint.
    """

    def __init__(self, admission: Admission) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "pdr_requests",
            "Requests answered, by model and HTTP status; 499 is a client that left",
            ["model", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "pdr_request_seconds",
            "From request to answer, waiting included",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.b_seq = Histogram(
            "pdr_run_sequential_tokens",
            "Tokens on the critical path of finished runs",
            ["model"],
            buckets=_TOKENS,
            registry=registry,
        )
        self._calls = Counter(
            "pdr_model_calls",
            "Calls to the model, by node and outcome",
            ["node", "outcome"],
            registry=registry,
        )
        self._tokens = Counter(
            "pdr_model_tokens",
            "Tokens of those calls",
            ["node", "kind"],
            registry=registry,
        )
        running = Gauge("pdr_runs_in_progress", "Runs in progress", registry=registry)
        running.set_function(lambda: admission.running)
        waiting = Gauge("pdr_requests_waiting", "Requests that wait for a run", registry=registry)
        waiting.set_function(lambda: admission.waiting)
        self.refusals = RefusalLog(registry)
        self.thinks: bool | None = None
        """Whether any reply so far held a thought; None before the first reply."""

    async def record(self, call: TraceRecord) -> None:
        """Count one call."""
        node = call["node"]
        self._calls.labels(node, "failed" if call["error"] else "done").inc()
        self._tokens.labels(node, "prompt").inc(call["prompt_tokens"])
        self._tokens.labels(node, "completion").inc(call["completion_tokens"])
        if not call["error"]:
            self.thinks = bool(self.thinks or call["thought"])

    def text(self) -> bytes:
        """Return all figures in Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True, slots=True)
class RunStore:
    """Where runs are kept, and the right to run one of its threads."""

    saver: BaseCheckpointSaver[str]
    alone: Callable[[str], AbstractAsyncContextManager[object]] = nullcontext
    """Keeps other processes from running a thread; raises `RefusalError` where one does. The
    default is for stores that no other process shares."""
    keeps_unnamed: bool = True
    """Whether runs without a name of the client's are kept; in memory they would only pile up."""


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the store has it."""

    problem: str
    config: PDRConfig
    result: Result | None
    """None where it has not ended."""
    running: bool
    """Whether this server runs it now."""
    written_s: float
    """When its last step was stored, in seconds since 1970."""


OnBegin = Callable[[PDRConfig], None]
"""Receives the config of a run before its first event; of a resumed run, the recorded one."""


class SolveRunner:
    """Carries out the runs of one server."""

    def __init__(
        self,
        model: ModelClient | Models,
        store: RunStore,
        options: ServeOptions,
        *,
        prompts: Prompts | None = None,
        judge: DraftJudge | None = None,
    ) -> None:
        """Begin without runs; `prompts` None is the built-in ones, and `judge` None is none."""
        self.model = Models.of(model)
        self.admission = Admission(max_runs=options.max_runs, max_waiting=options.max_waiting)
        self.metrics = Metrics(self.admission)
        self._store = store
        self._prompts = prompts or Prompts.load()
        self._steps = Extensions(judge=judge)
        self._runs: dict[str, tuple[RunControl, asyncio.Task[object]]] = {}
        """By thread."""
        self._stopped = False
        """Whether runs are cancelled by this server, and not by their clients."""
        self._called_off: set[str] = set()
        """Threads whose runs another request has cancelled."""

    async def carry_out(self, asked: SolveRequest, begin: OnBegin, on_event: OnEvent) -> Result:
        """Run to the end, from wherever the thread is.

        Raises:
            RefusalError: the server is full, or the thread is busy or holds another problem.
            DrainedError: the server stops.
            PDRError: as `solve` and `resume`.
        """
        store = self._store if self.can_resume(asked) else None
        try:
            async with (
                self.admission.place(),
                self._claimed(asked.place) as control,
                store.alone(asked.place) if store else nullcontext(),
            ):
                recorded = await self._recorded(asked) if asked.named else None
                config = recorded or asked.config
                begin(config)
                parts = Parts(
                    # Code that the operator names is imported; code that the store names is only
                    # compared.
                    extensions=self._steps.with_code(asked.config).of(config),
                    prompts=self._prompts,
                    trace=self.metrics,
                    on_event=on_event,
                    control=control,
                    # Text may be sent while it is written only if no verdict can reject it.
                    stream_answer=config.max_extra_rounds == 0,
                )
                if recorded is not None:
                    result = await resume(
                        asked.place,
                        model=self.model,
                        checkpointer=self._store.saver,
                        changes=asked.insisted,
                        parts=parts,
                    )
                else:
                    result = await solve(
                        asked.problem,
                        config,
                        model=self.model,
                        checkpointer=store.saver if store else None,
                        thread_id=asked.place,
                        parts=parts,
                    )
            return replace(result, thread_id=asked.thread_id)
        except asyncio.CancelledError:
            if asked.place in self._called_off:
                raise RefusalError(
                    409, "the response was cancelled by another request", code="response_cancelled"
                ) from None
            if self._stopped:
                raise DrainedError(asked.place) from None
            raise

    def can_resume(self, asked: SolveRequest) -> bool:
        """Tell whether the run is kept, so that its client can resume it later."""
        return asked.named or (self._store.keeps_unnamed and asked.stored)

    async def recall(self, thread_id: str, place: str) -> StoredRun | None:
        """Return the run of a thread by its name and its place; None where none is kept."""
        found = await self._store.saver.aget_tuple(_place(place))
        state = await with_input({}, _place(place), self._store.saver)
        if found is None or "config" not in state:
            return None
        ended = state.get("phase") == "done"
        seconds = elapsed_s(state.get("ledger", []))
        with reading(thread_id):
            result = Result.of_state(thread_id, state, seconds, self.model) if ended else None
        return StoredRun(
            problem=state.get("problem", ""),
            config=stored_config(state, thread_id),
            result=result,
            running=place in self._runs,
            written_s=datetime.fromisoformat(found.checkpoint["ts"]).timestamp(),
        )

    async def call_off(self, thread_id: str) -> None:
        """Cancel the run of a thread of the store, and wait until it has ended.

        Raises:
            RefusalError: another server runs it.
        """
        if thread_id not in self._runs:
            async with self._store.alone(thread_id):
                return
        if thread_id not in self._called_off:
            _, task = self._runs[thread_id]
            self._called_off.add(thread_id)
            try:
                task.cancel()
                await asyncio.wait({task})
            finally:
                self._called_off.discard(thread_id)

    async def forget(self, thread_id: str) -> None:
        """Delete a thread of the store.

        Raises:
            RefusalError: it is being run.
        """
        async with self._claimed(thread_id), self._store.alone(thread_id):
            await self._store.saver.adelete_thread(thread_id)

    def drain(self) -> None:
        """Take no more requests, and stop the runs at their next step."""
        self.admission.close()
        for control, _ in self._runs.values():
            control.request_drain()

    def cancel(self) -> None:
        """Stop all runs at once; their clients learn how to resume them."""
        self._stopped = True
        for _, task in self._runs.values():
            task.cancel()

    async def ended(self) -> None:
        """Wait until all runs have ended and their calls are closed."""
        await asyncio.gather(*(task for _, task in self._runs.values()), return_exceptions=True)

    @asynccontextmanager
    async def _claimed(self, thread_id: str) -> AsyncIterator[RunControl]:
        if thread_id in self._runs:
            raise thread_busy(thread_id)
        control, task = RunControl(), asyncio.current_task()
        assert task is not None  # we are in a coroutine
        self._runs[thread_id] = control, task
        try:
            yield control
        finally:
            del self._runs[thread_id]

    async def _recorded(self, asked: SolveRequest) -> PDRConfig | None:
        """Return the config that the thread was started with, None for a new thread.

        Raises:
            RefusalError: the thread holds another problem, whose answer is not this client's.
        """
        state = await with_input({}, _place(asked.place), self._store.saver)
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
        return stored_config(state, asked.thread_id)


def _place(thread_id: str) -> RunnableConfig:
    return RunnableConfig(configurable={"thread_id": thread_id, "checkpoint_ns": ""})
