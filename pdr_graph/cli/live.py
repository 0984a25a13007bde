"""How far a command is: a live display on a terminal, plain lines now and then elsewhere.

The display is rich's own `Progress`, with lines of facts beneath its bars.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from threading import Event, Thread
from time import monotonic
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress, ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

from pdr_graph.cli.output import Output, joined, one_line

REFRESH_S = 0.2
BAR_CELLS, LABEL_CELLS, LEAST_CELLS = 20, 28, 10


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the display: a label, a bar, what else is known."""

    label: str
    done: int = 0
    total: int | None = None
    """None draws no bar."""
    facts: str = ""


class Board(Protocol):
    """The progress of some work; the display reads it from a thread of its own."""

    silence_s: float
    """Longest time between plain lines, in seconds."""

    def bars(self) -> Sequence[Bar]:
        """Return the bars of the live display."""
        return ()

    def details(self) -> Sequence[Sequence[str]]:
        """Return the lines beneath them, each as its facts."""
        return ()

    def lines(self) -> Sequence[str]:
        """Return the lines for a pipe or a file; unchanged lines are not repeated."""


class LiveDisplay:
    """Shows a board from entry to exit."""

    def __init__(self, output: Output, board: Board) -> None:
        self._output = output
        self._board = board
        self._bars = _Bars(output.stderr) if output.is_live else None
        self._over = Event()
        self._thread = Thread(target=self._go_on, name="display", daemon=True)
        self._last = monotonic()
        self._said: Sequence[str] = ()

    def __enter__(self) -> Self:
        if not self._output.quiet:
            if self._bars is not None:
                self._bars.start()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hide()

    def say(self, *lines: str) -> None:
        """Say lines above the live display, or as plain ones."""
        self._last = monotonic()
        for line in lines:
            self._output.say(line)

    def hide(self) -> None:
        """Take the live lines off the terminal, from any thread."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._bars is not None:
            self._bars.stop()

    def _go_on(self) -> None:
        while not self._over.wait(self._pause()):
            if self._bars is not None:
                self._bars.show(self._board)
            elif monotonic() - self._last >= self._board.silence_s:
                lines = self._board.lines()
                self.say(*(lines if lines != self._said else ()))
                self._said = lines

    def _pause(self) -> float:
        if self._bars is not None:
            return REFRESH_S
        return max(0.01, self._last + self._board.silence_s - monotonic())


class _Bars(Progress):
    """rich's progress bars, with lines of facts beneath them."""

    def __init__(self, console: Console) -> None:
        self._facts: Sequence[Sequence[str]] = ()
        super().__init__(
            TextColumn("{task.description}", markup=False, table_column=_column()),
            _BarColumn(),
            TextColumn("{task.fields[facts]}", markup=False, table_column=_column()),
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def show(self, board: Board) -> None:
        """Draw a board as it is now."""
        bars, self._facts = board.bars(), board.details()
        for task in self.task_ids[len(bars) :]:
            self.remove_task(task)
        while len(self.task_ids) < len(bars):
            self.add_task("", total=None, facts="", bar=Bar(""))
        facts = [one_line(bar.facts) for bar in bars]
        # Labels give way to facts, and bars to both.
        room = self.console.width - max(map(len, facts), default=0) - 2
        for task, bar, known in zip(self.task_ids, bars, facts, strict=True):
            label = Text(one_line(bar.label))
            label.truncate(max(LEAST_CELLS, min(LABEL_CELLS, room)), overflow="ellipsis")
            self.update(task, description=label.plain, facts=known, bar=bar)
        self.refresh()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield from (_Facts(facts) for facts in self._facts if facts)


class BoardView:
    """A board as it is now, as the live display shows it."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bars = _Bars(Console(file=StringIO(), width=options.max_width))
        bars.show(self._board)
        yield from bars.get_renderables()


def _column() -> Column:
    return Column(no_wrap=True, overflow="ellipsis")


class _BarColumn(ProgressColumn):
    """A bar that shrinks for text on a narrow terminal; without a total there is no bar."""

    def render(self, task: Task) -> RenderableType:
        bar: Bar = task.fields["bar"]
        if not bar.total:
            return Text()
        return ProgressBar(
            total=bar.total,
            completed=bar.done,
            width=BAR_CELLS,
            complete_style="green",
            finished_style="green",
            style="bright_black",
        )


class _Facts:
    """Facts in lines that break between two of them and nowhere else."""

    def __init__(self, facts: Sequence[str]) -> None:
        self._facts = facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = ""
        for fact in map(one_line, self._facts):
            longer = joined([line, fact])
            if line and len(longer) > options.max_width:
                yield Text(line, "dim", no_wrap=True, overflow="ellipsis")
                longer = fact
            line = longer
        yield Text(line, "dim", no_wrap=True, overflow="ellipsis")


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
