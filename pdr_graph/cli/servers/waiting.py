"""How far servers are that are being started: one live line, or one every few seconds."""

import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.status import Status
from rich.text import Text

from pdr_graph.cli.output import Output
from pdr_graph.cli.text import one_line
from pdr_graph.stack.plan import TITLES, Part
from pdr_graph.stack.record import Record
from pdr_graph.stack.served import last_lines

SAY_EVERY_S = 15.0
LOOK_EVERY_S = 1.0
"""Between looks at a log."""


class Waiting:
    """Shows parts that are not ready yet."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._next: dict[Part, float] = {}
        self._lines: dict[Part, str] = {}
        live = output.stderr.is_terminal and not output.quiet
        self._status = Status("", console=output.stderr) if live else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def on(self, record: Record) -> None:
        """Show how a part is, unless it was shown just now."""
        now, every = time.monotonic(), LOOK_EVERY_S if self._status else SAY_EVERY_S
        if now < self._next.setdefault(record.part, now + every):
            return
        self._next[record.part] = now + every
        line = _line(record)
        if self._status is None:
            self._output.say(line)
            return
        self._lines[record.part] = line
        # One line for each, however narrow the terminal is.
        lines = Text("\n", no_wrap=True, overflow="ellipsis")
        self._status.update(lines.join(Text(each) for each in self._lines.values()))


def _line(record: Record) -> str:
    said = record.doing or "".join(last_lines(Path(record.log), 1))
    seconds = int(time.time() - record.since)
    return one_line(f"{record.part}: {TITLES[record.kind]} starts, {seconds} s: {said}")
