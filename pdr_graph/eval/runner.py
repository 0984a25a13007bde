"""Works off what a run owes: samples side by side, each a thread, each recorded once.

Killed at any instant, or stopped, the next process goes on: samples with a line are done, a
thread that was begun is resumed from its last finished draft. Several processes may work on one
run: a sample is claimed before it is looked at, and looked up again once it is.

Room for calls: how many samples are worked on at once.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from pdr_graph.errors import CallError, DrainedError, EndpointError, PDRError, QuorumError
from pdr_graph.eval.folder import RunFolder
from pdr_graph.eval.records import Key, SampleRecord, key_of
from pdr_graph.eval.sample import Sample
from pdr_graph.events import OnEvent, RunEvent


class Places:
    """A number of places, of which each taker needs some, served in the order in which they ask.

    A sample takes as many as its widest round has drafts. Were more begun, their calls would
    wait for one another, and the seconds of every sample would grow with the size of the run.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.free = total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, wanted: int) -> int:
        """Wait for places; returns how many were taken, never more than there are."""
        number = min(wanted, self.total)
        if self._waiting or number > self.free:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((number, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.give(number)  # it was our turn, and we are gone
                raise
        else:
            self.free -= number
        return number

    def give(self, number: int) -> None:
        """Give places back."""
        self.free += number
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
            elif wanted <= self.free:
                self._waiting.popleft()
                self.free -= wanted
                turn.set_result(None)
            else:
                return


MOST_FAILURES = 10
"""Samples that may fail one after another before the run is stopped: the endpoint is at fault then,
and no arm. None of them is recorded."""
_LOOK_AGAIN_S = 0.5
"""Between looks at samples that another process works on."""

Claim = Callable[[str], AbstractAsyncContextManager[bool]]
"""Holds a thread against the processes of other machines; yields False where one of them has it."""


class ElsewhereError(PDRError, RuntimeError):
    """Another process works on the thread."""

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"thread {thread_id!r} is run by another process")


class Laboratory(Protocol):
    """Runs samples: in this process (`sample.Lab`), or on others (`ray_cluster.RayLab`)."""

    @property
    def drained(self) -> bool:
        """Whether it was asked to stop."""

    async def run(self, sample: Sample, on_event: OnEvent) -> SampleRecord:
        """Start a sample, or go on with it, to its end."""

    async def failed(self, sample: Sample, error: PDRError) -> SampleRecord:
        """Record a sample that ended without a solution."""

    async def forget(self, sample: Sample) -> None:
        """Delete a sample's thread."""


class EvalWatcher:
    """Told how a run goes on; a display overrides what it shows."""

    def finished(self, record: SampleRecord) -> None:
        """Take a sample that was finished, now or before, here or elsewhere."""

    def started(self, sample: Sample) -> None:
        """Take a sample that is begun."""

    def event(self, sample: Sample, event: RunEvent) -> None:
        """Take what happens within a sample."""

    def waiting(self, number: int) -> None:
        """Take that all that is left is with other processes."""


@dataclass(slots=True)
class EvalRunner:
    """One process at work on one run."""

    lab: Laboratory
    folder: RunFolder
    places: Places
    watcher: EvalWatcher
    claim: Claim | None = None
    """None where locks of the run folder are enough."""
    keep_threads: bool = True
    """Whether finished samples stay in the store, to be inspected."""
    alive: Callable[[], Awaitable[bool]] | None = None
    """Tells whether the endpoint answers; None takes it to do so."""
    retry_failed: bool = False
    """Whether samples that an earlier process recorded as failed are owed again."""
    _failures: list[tuple[Sample, SampleRecord]] = field(default_factory=list)
    """Not recorded yet: they wait for a success that proves the endpoint alive."""
    _elsewhere: list[Sample] = field(default_factory=list)
    _excused: set[Key] = field(default_factory=set)
    """Keys whose recorded failure does not count as finished."""

    async def work(self, samples: list[Sample]) -> None:
        """Work until nothing is owed.

        Raises:
            DrainedError: it was asked to stop; samples under way have stopped where they can be
                resumed.
            EndpointError: one sample after another failed.
        """
        self._look()
        if self.retry_failed:
            self._excused = {
                key for key, each in self.folder.finished.items() if each["reason"] == "failed"
            }
        queue = deque(sample for sample in samples if self._is_owed(sample))
        while queue:
            await self._work_off(queue)
            self._look()
            queue = deque(sample for sample in self._elsewhere if self._is_owed(sample))
            self._elsewhere = []
            if queue:
                self.watcher.waiting(len(queue))
                await asyncio.sleep(_LOOK_AGAIN_S)
                self._stop_if_asked()
        await self._record_last_failures()

    async def _work_off(self, queue: deque[Sample]) -> None:
        """Start every sample of the queue as soon as there is room."""
        try:
            async with asyncio.TaskGroup() as group:
                while queue and not self._is_drained:
                    sample = queue.popleft()
                    taken = await self.places.take(max((1, *sample.config.widths)))
                    if self._is_drained:
                        self.places.give(taken)
                        break
                    group.create_task(self._attempt(sample, taken))
        except BaseExceptionGroup as several:
            raise _first(several) from None
        self._stop_if_asked()

    async def _attempt(self, sample: Sample, taken: int) -> None:
        try:
            async with AsyncExitStack() as held:
                # The folder's lock first: it is free the moment that its process is dead.
                mine = held.enter_context(self.folder.claim(sample.position))
                if mine and self.claim is not None:
                    mine = await held.enter_async_context(self.claim(sample.thread_id))
                if not mine:
                    self._elsewhere.append(sample)
                    return
                self._look()
                if self._is_owed(sample):
                    await self._run(sample)
        except DrainedError:
            pass  # said once, by `work`
        finally:
            self.places.give(taken)

    async def _run(self, sample: Sample) -> None:
        self.watcher.started(sample)
        on_event: OnEvent = lambda event: self.watcher.event(sample, event)  # noqa: E731
        try:
            record = await self.lab.run(sample, on_event)
        except ElsewhereError:
            self._elsewhere.append(sample)
            return
        except (CallError, QuorumError) as error:
            self._failures.append((sample, await self.lab.failed(sample, error)))
            self._stop_if_hopeless(error)
            return
        await self._record(sample, record)
        await self._record_failures()

    async def _record(self, sample: Sample, record: SampleRecord) -> None:
        await asyncio.to_thread(self.folder.append, record)
        self._look()
        if not self.keep_threads:
            await self.lab.forget(sample)

    async def _record_failures(self) -> None:
        failures, self._failures = self._failures, []
        for sample, record in failures:
            await self._record(sample, record)

    async def _record_last_failures(self) -> None:
        """Record failures that no success came after, unless the endpoint is dead.

        Raises:
            EndpointError: it is.
        """
        if self._failures and self.alive is not None and not await self.alive():
            raise EndpointError(
                f"the endpoint answers no more: {self._failures[-1][1]['error']}; the last "
                f"{len(self._failures)} that failed are not recorded"
            )
        await self._record_failures()

    def _stop_if_hopeless(self, error: PDRError) -> None:
        if len(self._failures) >= MOST_FAILURES:
            raise EndpointError(
                f"{len(self._failures)} samples failed one after another, the last because: "
                f"{error}; none of them is recorded, the same command asks for them again"
            )

    def _look(self) -> None:
        """Take in what was appended, by whichever process."""
        for record in self.folder.refresh():
            self._excused.discard(key_of(record))
            self.watcher.finished(record)

    def _is_owed(self, sample: Sample) -> bool:
        return sample.key not in self.folder.finished or sample.key in self._excused

    @property
    def _is_drained(self) -> bool:
        return self.lab.drained

    def _stop_if_asked(self) -> None:
        if self._is_drained:
            raise DrainedError(self.folder.path.name)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a group of tasks died of."""
    error: BaseException = several
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
