"""The event loop in which a saver's sync methods run the async ones.

Connections belong to the loop that opened them, so the sync methods have a loop of their own, in a
thread. It starts at the first sync call and ends with `close`. A sync call
from inside a running loop blocks that loop, but does not deadlock.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
# Any: the send and yield types of a coroutine, which nobody uses.
Call = Coroutine[Any, Any, T]


class LoopThread:
    """An event loop in a thread, to which sync code hands coroutines.

    The thread is a daemon: a process whose saver was not closed still ends. With anyio's portal it
    would wait for ever.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="checkpoints", daemon=True)
        self._thread.start()

    def run(self, call: Call[T]) -> T:
        """Run a coroutine to its end; a Ctrl-C while waiting cancels it."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop and the thread; a call that is under way is cancelled."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        # At its end a runner cancels what is under way and closes the loop.
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.get_loop().run_forever()


class SyncLoop:
    """The loop behind the sync methods; none until the first of them is called."""

    def __init__(self) -> None:
        self._running: LoopThread | None = None
        self._inherited: list[object] = []
        """Loops of the processes that this one was forked from."""
        self._pid = os.getpid()
        """Process of the loop: a fork has no threads but the one that forked."""
        self._lock = threading.Lock()

    def start(self) -> LoopThread:
        """Return the loop, started if it does not run yet."""
        with self._lock:
            self._leave_to_parent()
            if self._running is None:
                self._running = LoopThread()
            return self._running

    def close(self, last: Callable[[], Call[None]] | None = None) -> None:
        """End the loop, after a last call in it."""
        with self._lock:
            self._leave_to_parent()
            if self._running is not None:
                if last is not None:
                    self._running.run(last())
                self._running.stop()
            self._running = None

    def _leave_to_parent(self) -> None:
        """Forget, in a forked process, what belongs to its parent."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._inherited.append(self._running)
            self._running = None
