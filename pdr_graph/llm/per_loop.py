"""One value per event loop.

Connection pools and semaphores belong to the loop that made them. Whoever owns one for a whole
process keeps it here, so that the same object serves `asyncio.run` twice, or two threads.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


class PerLoop(Generic[T]):
    """Makes a value on first use in each event loop and forgets it with the loop."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """Return the running loop's value."""
        loop = asyncio.get_running_loop()
        value = self._values.get(loop)
        if value is None:
            value = self._values[loop] = self._make()
        return value

    def pop(self) -> T | None:
        """Forget the running loop's value and return it, None if there was none."""
        return self._values.pop(asyncio.get_running_loop(), None)
