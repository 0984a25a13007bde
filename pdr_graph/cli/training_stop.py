"""The signals that end a training run: at once while it starts, after an update once it trains."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from time import monotonic
from types import FrameType

from pdr_graph.cli.signals import SIGNALS

SAME_S = 1.0
"""A launcher passes on what the terminal has sent to all: within this it is one signal."""
_CHUNK = 16


def _always() -> bool:
    return True


@dataclass(slots=True)
class Stop:
    """Listens for the signals that end a run.

    While it starts, nothing can be lost: the first signal ends the process, from a thread of its
    own, since the main one may be in an import, or wait for other processes, and would hear of it
    only afterwards. Later the first lets an update end, and the second kills.
    """

    say: Callable[[str], None]
    leave: Callable[[int], None]
    """Ends the process by a signal's number; called in that thread."""
    starting: Callable[[], bool] = _always
    received: int | None = None
    """The first signal's number; None as long as there was none."""
    deaf: bool = False
    """Whether signals are of no account from the end of the block on: what ended the run is told
    first, whatever a launcher sends whose other processes have ended as well."""
    _at: float = 0.0
    _before: dict[int, object] = field(default_factory=dict)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signals for as long as the block lasts."""
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
                    "stopping: the update under way is finished and a checkpoint written; a second "
                    "signal stops at once, and costs what came after the last checkpoint"
                )
        elif monotonic() - self._at > SAME_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _watch(self, read: int) -> None:
        while numbers := os.read(read, _CHUNK):
            for number in numbers:
                if number in SIGNALS and self.starting():
                    self.leave(number)
