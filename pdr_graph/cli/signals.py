"""Ctrl-C and SIGTERM: a first signal stops a run where it can be resumed, a second at once."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from threading import Thread
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING

from pdr_graph.cli.failure import FAILED, RunEndedError
from pdr_graph.errors import ConfigError, DrainedError

if TYPE_CHECKING:
    from langgraph.runtime import RunControl

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_S = 1.0
"""Seconds in which signals count as one: a launcher passes on what the terminal sent to all."""
_CHUNK = 16


class Stopper:
    """Listens for the signals that end a run on an event loop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.received: signal.Signals | None = None
        """The last signal, None as long as there was none."""
        self._say = say
        self._running = False
        self._task: asyncio.Task[object] | None = None

    @cached_property
    def control(self) -> "RunControl":
        """The control that the run is given; the first signal asks it to drain."""
        from langgraph.runtime import RunControl  # late: signals are taken before it has loaded

        return RunControl()

    @contextmanager
    def ending(self, way_on: Callable[[], str], begun: Callable[[], bool]) -> Iterator[None]:
        """Take over the signals while the block of the current task runs.

        Args:
            way_on: Says how to continue.
            begun: Tells whether there is anything to continue.

        Raises:
            RunEndedError: a signal ended the block, or an error did once the run had begun.
        """
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        for each in SIGNALS:
            loop.add_signal_handler(each, self._on_signal, each)
        try:
            yield
        except (DrainedError, asyncio.CancelledError) as error:
            if self.received is None and isinstance(error, asyncio.CancelledError):
                raise
            raise RunEndedError(way_on(), 128 + (self.received or signal.SIGINT)) from None
        except ConfigError:
            raise
        # The top of the command line reports the error; here we add how to continue.
        except Exception as error:
            if not begun():
                raise
            raise RunEndedError(way_on(), FAILED, error) from error
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
            self._say("stopping: waiting for calls in flight; a second signal stops at once")
            return
        if self._task is not None:
            self._task.cancel()
        # After a second signal nothing is waited for, not even cleaning up.
        loop = asyncio.get_running_loop()
        for each in SIGNALS:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)


def _always() -> bool:
    return True


@dataclass(slots=True)
class TrainStopper:
    """Listens for the signals that end a training run.

    While the run starts, nothing can be lost: the first signal ends the process, from a thread of
    its own. The main thread may be in an import, or wait for other processes, and would see the
    signal only afterwards. Once the run trains, the first signal lets an update end, and the
    second kills.
    """

    say: Callable[[str], None]
    leave: Callable[[int], None]
    """Ends the process by a signal's number; called in that thread."""
    starting: Callable[[], bool] = _always
    received: int | None = None
    """The first signal's number; None as long as there was none."""
    deaf: bool = False
    """Whether to ignore signals after the block, so that the cause of the end is reported even if a
    launcher sends signals because other processes have ended."""
    _at: float = 0.0
    _before: dict[int, object] = field(default_factory=dict)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals while the block runs."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        watch = Thread(target=self._watch, args=(read,), name="signals", daemon=True)
        self._before = {each: signal.signal(each, self._on_signal) for each in SIGNALS}
        woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        watch.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for each, handler in self._before.items():
                after = signal.SIG_IGN if self.deaf else handler
                signal.signal(each, after)  # type: ignore[arg-type]  # what it was before
            os.close(write)
            watch.join()
            os.close(read)

    def asked(self) -> bool:
        """Return whether to stop."""
        return self.received is not None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, monotonic()
            if not self.starting():
                self.say(
                    "stopping: the current update is finished and a checkpoint written; a second "
                    "signal stops at once and loses what came after the last checkpoint"
                )
        elif monotonic() - self._at > SAME_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _watch(self, read: int) -> None:
        while numbers := os.read(read, _CHUNK):
            for number in numbers:
                if number in SIGNALS and self.starting():
                    self.leave(number)
