"""Lets a round go on when a quorum of its drafts is in.

The drafts of one round run as tasks of one process and meet here. What a gate has counted is not
checkpointed: after a resume it counts anew, and a round then waits for its owed drafts at worst.
"""

import asyncio
import math
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Gate:
    """One round of one run: opens once enough drafts have a solution."""

    def __init__(self, needed: int) -> None:
        self._missing = needed
        self._opened = asyncio.Event()

    def arrived(self) -> None:
        """Count a draft that has a solution."""
        self._missing -= 1
        if self._missing <= 0:
            self._opened.set()

    async def race(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`, or None if the gate opens first.

        Work that is cut is cancelled, and has ended its request, before this returns.
        """
        task = asyncio.ensure_future(work)
        opened = asyncio.ensure_future(self._opened.wait())
        try:
            await asyncio.wait({task, opened}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            opened.cancel()
            await asyncio.gather(task, opened, return_exceptions=True)


class Gates:
    """The gates of all rounds that run in this process; a gate goes with its last draft."""

    def __init__(self) -> None:
        self._gates: WeakValueDictionary[tuple[object, ...], Gate] = WeakValueDictionary()

    def of_round(self, *key: object, width: int, quorum: float) -> Gate:
        """Return the gate that all drafts of one round share."""
        gate = self._gates.get(key)
        if gate is None:
            # The tolerance keeps 0.1 * 30 from asking for a fourth draft.
            gate = self._gates[key] = Gate(math.ceil(quorum * width - 1e-9))
        return gate
