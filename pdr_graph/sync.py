"""The method without asyncio: for scripts, notebooks and plain programs.

    result = solve_sync("What is 6 x 7?", "pdr", model=model)
    for event in stream("What is 6 x 7?", "pdr", model=model):
        print(event["event"])

The run has an event loop of its own, in a thread of its own. So these work where a loop runs
already, as in Jupyter, and a run goes on while nobody reads its events.
"""

from asyncio import Runner, Task, new_event_loop, wait
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any, Self
from weakref import finalize

from langchain_core.language_models import BaseChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver

from pdr_graph.config import PDRConfig
from pdr_graph.errors import DrainedError
from pdr_graph.events import OnEvent, RunEvent, is_event
from pdr_graph.extensions import Extensions, Parts, RunOrder, check_saver
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models, ModelsByRole
from pdr_graph.llm.tokens import ServerCounter
from pdr_graph.run import Result, new_thread_id, resume, solve
from pdr_graph.validation import check_problem


def solve_sync(
    problem: str,
    config: PDRConfig | str | Mapping[str, object] | None = None,
    *,
    model: BaseChatModel | ModelClient | Models | str,
    models: ModelsByRole | None = None,
    checkpointer: BaseCheckpointSaver[str] | None = None,
    thread_id: str | None = None,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
) -> Result:
    """Run the method on one problem, and wait for its result.

    Ctrl-C cancels the run, waits until what it has written is stored, and goes on as
    `KeyboardInterrupt`. A note of that error names the thread that `resume_sync` continues.

    Args:
        problem: As for `solve`, like all that follows.
        config: A `PDRConfig`, the name of a preset, or a dict of fields.
        model: Any LangChain chat model, or its name.
        models: Models of their own for some roles.
        checkpointer: Where the run is kept. It must serve every event loop: `InMemorySaver` and our
            `RedisSaver` do, a saver that is bound to the loop that opened it does not.
        thread_id: Names the run; None makes up a name.
        parts: As for `solve`; `on_event` and steps of your own are called in the run's thread.
        extensions: Distillers, finishes and verifiers of your own.
        judge: Weighs drafts.

    Raises:
        PDRError: as `solve` raises them: ConfigError, ThreadExistsError, ContextWindowError,
            StepError, QuorumError, CallError, DrainedError, WaitingError.
        KeyboardInterrupt: the run was interrupted; with a checkpointer it can be resumed.
    """
    thread_id = thread_id or new_thread_id()
    order = RunOrder.of(model=model, models=models)
    run = solve(
        problem,
        config,
        model=order.models,
        checkpointer=checkpointer,
        thread_id=thread_id,
        parts=parts,
        extensions=extensions,
        judge=judge,
    )
    return _SideRun(run, thread_id, order.models, is_kept=checkpointer is not None).result()


def resume_sync(
    thread_id: str,
    config: PDRConfig | str | Mapping[str, object] | None = None,
    *,
    model: BaseChatModel | ModelClient | Models | str,
    models: ModelsByRole | None = None,
    checkpointer: BaseCheckpointSaver[str],
    changes: dict[str, object] | None = None,
    answer: object = None,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
) -> Result:
    """Resume a run that was killed, stopped or failed, and wait for its result.

    Args:
        thread_id: As for `resume`, like all that follows.
        config: What the run was started with, for a caller who insists on it.
        model: The model that the run was started with.
        models: The models of single roles that the run was started with.
        checkpointer: Where the run is kept, as for `solve_sync`.
        changes: Config fields that the caller insists on.
        answer: What a person says to the question that the run waits for.
        parts: As for `solve_sync`.
        extensions: Distillers, finishes and verifiers of your own.
        judge: Weighs drafts.

    Raises:
        PDRError: as `resume` raises them: UnknownThreadError, OtherGraphError, DamagedRunError,
            ConfigChangedError, and those of `solve_sync`.
        KeyboardInterrupt: the run was interrupted; it can be resumed again.
    """
    order = RunOrder.of(model=model, models=models)
    run = resume(
        thread_id,
        config,
        model=order.models,
        checkpointer=checkpointer,
        changes=changes,
        answer=answer,
        parts=parts,
        extensions=extensions,
        judge=judge,
    )
    return _SideRun(run, thread_id, order.models, is_kept=True).result()


def stream(
    problem: str,
    config: PDRConfig | str | Mapping[str, object] | None = None,
    *,
    model: BaseChatModel | ModelClient | Models | str,
    models: ModelsByRole | None = None,
    checkpointer: BaseCheckpointSaver[str] | None = None,
    thread_id: str | None = None,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
    stream_answer: bool = False,
) -> "RunStream":
    """Begin a run, and return its events as a plain iterator; its `result` is the result.

    The run begins at once and does not wait for the reader. Leave the loop early, or drop the
    iterator, and the run is cancelled; with a checkpointer it can be resumed. `with stream(…) as
    run` cancels it at the end of the block.

    Args:
        problem: As for `solve_sync`, like all that follows.
        config: A `PDRConfig`, the name of a preset, or a dict of fields.
        model: Any LangChain chat model, or its name.
        models: Models of their own for some roles.
        checkpointer: Where the run is kept.
        thread_id: Names the run; None makes up a name, which is the iterator's `thread_id`.
        parts: What a step of your own writes to the stream goes to `on_event` alone.
        extensions: Distillers, finishes and verifiers of your own.
        judge: Weighs drafts.
        stream_answer: Whether the refinement is streamed, as `chunk` events.

    Raises:
        ConfigError: the request cannot be carried out as asked; nothing has begun. All other errors
            of `solve_sync` are raised by the iterator, or by its `result`.
    """
    check_problem(problem)
    check_saver(checkpointer)
    order = RunOrder.of(
        config,
        model=model,
        models=models,
        parts=parts,
        extensions=extensions,
        judge=judge,
        stream_answer=stream_answer,
    )
    thread_id = thread_id or new_thread_id()
    events: SimpleQueue[RunEvent | None] = SimpleQueue()
    run = solve(
        problem,
        order.config,
        model=order.models,
        checkpointer=checkpointer,
        thread_id=thread_id,
        parts=replace(order.parts, on_event=_teller(events, order.parts.on_event)),
    )
    is_kept = checkpointer is not None
    return RunStream(
        _SideRun(run, thread_id, order.models, is_kept=is_kept, told=lambda: events.put(None)),
        events,
    )


class RunStream(Iterator[RunEvent]):
    """The events of one run that goes on in a thread of its own, as they come."""

    def __init__(self, run: "_SideRun", events: SimpleQueue[RunEvent | None]) -> None:
        self._run = run
        self._events = events
        self.thread_id = run.thread_id
        # The thread holds the run, and not this object, which therefore ends when it is dropped.
        self._dropped = finalize(self, run.cancel)
        self._dropped.atexit = False

    def __next__(self) -> RunEvent:
        """Return the next event.

        Raises:
            StopIteration: the run has ended, or was closed; `result` has what it ended with.
            PDRError: it has ended with an error, as `solve_sync` raises it.
            KeyboardInterrupt: the run was interrupted, and is cancelled.
        """
        with self._run.waited_for():
            event = None if self._run.is_cancelled else self._events.get()
        if event is not None:
            return event
        self._events.put(None)  # for whoever asks again
        if not self._run.is_cancelled:
            self._run.result()
        raise StopIteration

    @property
    def result(self) -> Result:
        """The result; waits for the end of the run.

        Raises:
            PDRError: as for `solve_sync`.
            DrainedError: the run was closed before its end.
        """
        return self._run.result()

    def close(self) -> None:
        """Cancel the run if it has not ended, and wait until what it has written is stored."""
        self._run.cancel()
        self._run.join()

    def __enter__(self) -> Self:
        """Return the iterator."""
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel the run if it has not ended."""
        self.close()


def _teller(events: SimpleQueue[RunEvent | None], also: OnEvent | None) -> OnEvent:
    def tell(event: RunEvent) -> None:
        if also is not None:
            also(event)
        if is_event(event):
            events.put(event)

    return tell


class _SideRun:
    """A run on an event loop of its own, in a thread of its own."""

    def __init__(
        self,
        run: Coroutine[Any, Any, Result],
        thread_id: str,
        models: Models,
        *,
        is_kept: bool,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin it; `told` is called in its thread when it has ended."""
        self.thread_id = thread_id
        self.is_cancelled = False
        self._is_kept = is_kept
        self._models = models
        self._told = told
        self._ended: Future[Result] = Future()
        # Given a factory, the runner leaves the loop of the calling thread alone.
        self._runner = Runner(loop_factory=new_event_loop)
        self._loop = self._runner.get_loop()
        self._task = self._loop.create_task(run, context=copy_context())
        # A daemon: a program that ends does not wait for a run that nobody waits for.
        self._thread = Thread(target=self._work, name=f"pdr-{thread_id}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            # The loop raises these two, which are the task's error too.
            with suppress(KeyboardInterrupt, SystemExit), self._runner:
                self._runner.run(_end_of(self._task, self._models))
        finally:
            if self._task.cancelled() or not self._task.done():
                self._ended.set_exception(DrainedError(self.thread_id))
            elif (error := self._task.exception()) is not None:
                self._ended.set_exception(error)
            else:
                self._ended.set_result(self._task.result())
            self._told()

    def result(self) -> Result:
        """Wait for the end, and return the result or raise the error."""
        with self.waited_for():
            return self._ended.result()

    def cancel(self) -> None:
        """Ask the run to end; nothing happens if it has."""
        if not self._ended.done():
            self.is_cancelled = True
            with suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(self._task.cancel)

    def join(self) -> None:
        """Wait until the thread has ended; return at once in that thread itself."""
        if self._thread is not current_thread():
            self._thread.join()

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Cancel the run if the wait for it is interrupted, and say in the error how it goes on."""
        try:
            yield
        except BaseException as error:
            if not self._ended.done():
                self.cancel()
                self.join()
                error.add_note(
                    f"the run is kept: resume_sync({self.thread_id!r}, …) continues it"
                    if self._is_kept
                    else "the run is lost: without a checkpointer nothing of it is kept"
                )
            raise


async def _end_of(task: Task[Result], models: Models) -> None:
    """Wait for the end of a run, and close the connections that its loop has opened."""
    await wait([task])
    for client in models.clients:
        if isinstance(client.model, ChatVLLM):
            await client.model.aclose()
        if isinstance(client.counter, ServerCounter):
            await client.counter.aclose()
