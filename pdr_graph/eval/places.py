"""Room for calls: how many samples are worked on at once."""

import asyncio
from collections import deque


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
