"""How many runs go on at once, how many requests wait for their turn, and when the doors close."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

from pdr_graph.serve.refusal import RETRY_SOON_S, RefusalError

LONGEST_RETRY_S = 60


class Admission:
    """Lets requests in, first come first served."""

    def __init__(self, *, max_runs: int, max_waiting: int) -> None:
        self._max_runs = max_runs
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.closed = False
        """Whether nobody is let in any more."""
        self._run_s = 1.0
        self.running = 0
        """Requests whose run goes on."""

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(not each.done() for each in self._waiting)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold one of the places, after waiting for it if need be.

        Raises:
            RefusalError: 429 where too many wait already, 503 where the doors are closed.
        """
        await self._enter()
        began = perf_counter()
        try:
            yield
        finally:
            # How long a run takes, of late: what Retry-After is reckoned from.
            self._run_s += 0.2 * (perf_counter() - began - self._run_s)
            self._leave()

    def close(self) -> None:
        """Turn away who waits and who comes; who is in stays."""
        self.closed = True
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(_closing())

    async def _enter(self) -> None:
        if self.closed:
            raise _closing()
        if self.running < self._max_runs:
            self.running += 1
            return
        if self.waiting >= self._max_waiting:
            raise RefusalError(
                429,
                f"{self.running} runs go on and {self.waiting} requests wait, which is all this "
                "server takes; try again later",
                code="server_busy",
                retry_after_s=self._retry_after_s(),
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            # Its turn may have come in the very moment in which it left.
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the place goes straight to the next
                return
        self.running -= 1

    def _retry_after_s(self) -> int:
        ahead = (self.waiting + 1) / self._max_runs
        return min(LONGEST_RETRY_S, max(1, math.ceil(self._run_s * ahead)))


def _closing() -> RefusalError:
    return RefusalError(
        503,
        "the server is shutting down",
        code="shutting_down",
        retry_after_s=RETRY_SOON_S,
    )
