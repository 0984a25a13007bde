"""Ctrl-C and SIGTERM: the first asks a run to stop where it can be resumed, the second stops it."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from langgraph.runtime import RunControl

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopper:
    """Listens for the signals that end a command."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.control = RunControl()
        """Hand it to the run: it drains at the first signal."""
        self.received: signal.Signals | None = None
        """The last signal, None as long as there was none."""
        self._say = say
        self._running = False
        self._task: asyncio.Task[object] | None = None

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it."""
        return 128 + (self.received or signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals for as long as the block of the current task lasts."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for each in SIGNALS:
            loop.add_signal_handler(each, self._on_signal, each)
        try:
            yield
        finally:
            for each in SIGNALS:
                loop.remove_signal_handler(each)

    @contextmanager
    def draining(self) -> Iterator[None]:
        """Let the first signal drain the run of this block, instead of cancelling the command."""
        self._running = True
        try:
            yield
        finally:
            self._running = False

    def _on_signal(self, received: signal.Signals) -> None:
        first, self.received = self.received is None, received
        if first and self._running:
            self.control.request_drain()
            self._say("stopping: calls in flight are waited for; a second signal stops at once")
            return
        if self._task is not None:
            self._task.cancel()
        # Whoever signals once more does not want to wait for any tidying up.
        loop = asyncio.get_running_loop()
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
