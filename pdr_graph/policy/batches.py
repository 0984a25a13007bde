"""Collects calls that wait at the same time, for a model that works on many of them at once.

What a model draws depends in the last bits on what else is in the batch. So where runs are known
to go on, a batch has the calls of all of them, and which those are is not a matter of timing: the
same runs on the same weights draw the same tokens.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pdr_graph.llm.pool import PerLoop

Request = TypeVar("Request")
Answer = TypeVar("Answer")

_RUN: ContextVar[object | None] = ContextVar("run", default=None)
"""The run that a task belongs to."""
_TURNS = 64
"""Turns of the event loop in which no further call of a round comes once the first has come."""
_POLL_S = 0.001


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[Request, Answer]):
    """A call that waits."""

    request: Request
    future: "asyncio.Future[Answer]"
    run: object | None
    """What it is a call of, None where nobody said."""

    @property
    def left(self) -> bool:
        """Whether its caller has gone, so that nobody wants the answer."""
        return self.future.cancelled()


@dataclass(slots=True)
class _Queue(Generic[Request, Answer]):
    """The calls of one event loop."""

    tickets: list[Ticket[Request, Answer]] = field(default_factory=list)
    runs: set[object] = field(default_factory=set)
    """Those that go on."""
    server: "asyncio.Task[None] | None" = None

    @property
    def has_all(self) -> bool:
        """Whether every run waits."""
        return self.runs <= {ticket.run for ticket in self.tickets}


class CallBatcher(Generic[Request, Answer]):
    """Hands calls to a function in batches, one batch at a time, off the event loop."""

    def __init__(
        self,
        work: Callable[[Sequence[Ticket[Request, Answer]]], Sequence[Answer]],
        *,
        settle_s: float = 0.002,
        patience_s: float = 0.25,
    ) -> None:
        """Make a batcher.

        Args:
            work: Answers calls in their order; it is called from one thread of its own.
            settle_s: Where no run is known, a batch begins once no call has come for this long.
            patience_s: Where runs are known, it begins once no call has come for this long, though
                a run does not wait: it may be busy with something else.
        """
        self._work = work
        self._settle_s = settle_s
        self._patience_s = patience_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._queues: PerLoop[_Queue[Request, Answer]] = PerLoop(_Queue)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Have batches wait for the calls of a run: of this task, and of those that it starts."""
        run, runs = object(), self._queues.get().runs
        runs.add(run)
        token = _RUN.set(run)
        try:
            yield
        finally:
            _RUN.reset(token)
            runs.discard(run)

    async def ask(self, request: Request) -> Answer:
        """Return the answer; what `work` raises is raised in every call of its batch."""
        queue = self._queues.get()
        ticket: Ticket[Request, Answer] = Ticket(
            request, asyncio.get_running_loop().create_future(), _RUN.get()
        )
        queue.tickets.append(ticket)
        if queue.server is None or queue.server.done():
            queue.server = asyncio.create_task(self._serve(queue))
        return await ticket.future

    async def _serve(self, queue: _Queue[Request, Answer]) -> None:
        """Work until nobody waits."""
        while queue.tickets:
            await self._settle(queue)
            batch = [ticket for ticket in queue.tickets if not ticket.left]
            queue.tickets.clear()
            if batch:
                await self._answer(batch)

    async def _settle(self, queue: _Queue[Request, Answer]) -> None:
        """Return once the calls that belong together are there."""
        loop = asyncio.get_running_loop()
        count, since = len(queue.tickets), loop.time()
        while True:
            if not queue.runs:
                await asyncio.sleep(self._settle_s)
            elif queue.has_all:
                await _turns()
            elif loop.time() - since < self._patience_s:
                await asyncio.sleep(_POLL_S)
                if len(queue.tickets) == count:
                    continue
            if len(queue.tickets) == count:
                return
            count, since = len(queue.tickets), loop.time()

    async def _answer(self, batch: Sequence[Ticket[Request, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._work, batch)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the callers'
            for ticket in batch:
                if not ticket.future.done():
                    ticket.future.set_exception(error)
            return
        for ticket, answer in zip(batch, answers, strict=True):
            if not ticket.future.done():
                ticket.future.set_result(answer)


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
