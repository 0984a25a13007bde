"""Lets calls start one by one.

To build and send a request takes a millisecond or two without a pause. A round of a thousand
drafts would do that a thousand times in one turn of the event loop, and whatever else the process
serves would wait for seconds.
"""

import asyncio


class Turnstile:
    """Passed by one caller in each turn of the event loop, in the order in which they came."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def turn(self) -> None:
        """Wait for this caller's turn."""
        async with self._lock:
            await asyncio.sleep(0)
