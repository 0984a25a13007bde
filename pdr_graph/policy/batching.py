"""Collects calls that wait at the same time, for a model that works on many of them at once."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pdr_graph.llm.per_loop import PerLoop

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, eq=False)
class Ticket(Generic[Request, Answer]):
    """A call that waits."""

    request: Request
    future: "asyncio.Future[Answer]"

    @property
    def left(self) -> bool:
        """Whether its caller has gone, so that nobody wants the answer."""
        return self.future.cancelled()


@dataclass(slots=True)
class _Queue(Generic[Request, Answer]):
    """The calls of one event loop."""

    tickets: list[Ticket[Request, Answer]] = field(default_factory=list)
    server: "asyncio.Task[None] | None" = None


class Batcher(Generic[Request, Answer]):
    """Hands calls to a function in batches, one batch at a time, off the event loop."""

    def __init__(
        self,
        work: Callable[[Sequence[Ticket[Request, Answer]]], Sequence[Answer]],
        *,
        most: int,
        settle_s: float = 0.002,
    ) -> None:
        """Make a batcher.

        Args:
            work: Answers calls in their order; it is called from one thread of its own.
            most: Calls of one batch.
            settle_s: A batch begins once no call has come for this long.
        """
        self._work = work
        self._most = most
        self._settle_s = settle_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self._queues: PerLoop[_Queue[Request, Answer]] = PerLoop(_Queue)

    async def ask(self, request: Request) -> Answer:
        """Return the answer; what `work` raises is raised in every call of its batch."""
        queue = self._queues.get()
        ticket: Ticket[Request, Answer] = Ticket(
            request, asyncio.get_running_loop().create_future()
        )
        queue.tickets.append(ticket)
        if queue.server is None or queue.server.done():
            queue.server = asyncio.create_task(self._serve(queue))
        return await ticket.future

    async def _serve(self, queue: _Queue[Request, Answer]) -> None:
        """Work until nobody waits."""
        while queue.tickets:
            await self._settle(queue)
            batch = [ticket for ticket in queue.tickets[: self._most] if not ticket.left]
            del queue.tickets[: self._most]
            if batch:
                await self._answer(batch)

    async def _settle(self, queue: _Queue[Request, Answer]) -> None:
        """Wait while more calls come: those of a round do, a few in each turn of the loop."""
        while (before := len(queue.tickets)) < self._most:
            await asyncio.sleep(self._settle_s)
            if len(queue.tickets) == before:
                return

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
