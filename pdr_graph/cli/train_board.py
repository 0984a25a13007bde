"""Shows a training run that goes on: a few live lines on a terminal, now and then one elsewhere.

What came of a training run: its first figures beside its last.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from time import monotonic
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pdr_graph.cli.output import Output, joined, one_line, plain_table
from pdr_graph.train.metrics import METRICS, Line, Stage, read_metrics
from pdr_graph.train.run_folder import TrainFolder

BETWEEN_LINES_S = 10.0
"""Least seconds from line to line where there is no terminal."""
REFRESH_PER_S = 4
BAR_CELLS, LEAST_CELLS = 24, 6
_STAGES: Mapping[Stage, str] = {"warm_start": "warm start", "rl": "training"}


class TrainingBoard:
    """Remembers the newest figure of every kind, and tells them."""

    def __init__(self, output: Output) -> None:
        self.what = "starting"
        self.update, self.total = 0, 0
        self.figures: dict[str, float] = {}
        self._output = output
        self._live: Live | None = None
        self._updates_per_step = 1
        self._from, self._began = 0, 0.0
        self._told_at: float | None = None

    def phase(self, what: str) -> None:
        """Say what is done now."""
        self.what, self.total = what, 0
        if not self._live:
            self._output.say(what)

    def begins(self, stage: Stage, update: int, total: int, updates_per_step: int) -> None:
        """Start the clock of a stage."""
        self.what, self.total = _STAGES[stage], total
        self.update = self._from = update
        self._updates_per_step, self._began = updates_per_step, monotonic()
        self.figures, self._told_at = {}, None
        if update:
            self._output.say(f"{self.what}: going on after {self.place}")

    def told(self, line: Line) -> None:
        """Take the figures of an update."""
        self.update = line["update"]
        self.figures |= {name: value for name, value in line.items() if isinstance(value, float)}
        now = monotonic()
        due = self._told_at is None or now - self._told_at >= BETWEEN_LINES_S
        if not self._live and (due or self.update == self.total):
            self._told_at = now
            self._output.say(joined([f"{self.what}: {self.place}", *self.facts, self.left]))

    @property
    def place(self) -> str:
        """How far it is."""
        if self._updates_per_step == 1:
            return f"{self.update}/{self.total}"
        per_step = self._updates_per_step
        return f"{self.update / per_step:g}/{self.total / per_step:g}"

    @property
    def left(self) -> str:
        """How long it takes from here at the pace of this process; empty before there is one."""
        done = self.update - self._from
        if not done or self.update >= self.total:
            return ""
        return f"{_duration((monotonic() - self._began) / done * (self.total - self.update))} left"

    @property
    def facts(self) -> list[str]:
        """What the newest figures say, the most telling first."""
        return [*self.rewards, *self.health, *self.speed]

    @property
    def rewards(self) -> list[str]:
        """Mean reward of the runs, and of the calls of each role."""
        named = {name: value for name, value in self.figures.items() if name.startswith("reward/")}
        runs = named.pop("reward/run", None)
        facts = [] if runs is None else [f"reward {runs:+.2f}"]
        return facts + [
            f"{name.removeprefix('reward/')} {value:+.2f}" for name, value in sorted(named.items())
        ]

    @property
    def health(self) -> list[str]:
        """What tells whether learning goes well."""
        forms = {
            "policy/entropy": "entropy {:.2f}",
            "entropy": "entropy {:.2f}",
            "policy/clipped": "clipped {:.1%}",
            "drift/largest": "drift {:.1e}",
            "groups/flat": "flat groups {:.0%}",
            "loss": "loss {:.3f}",
            "mean_token_accuracy": "right tokens {:.1%}",
        }
        stage_loss = "reward/run" in self.figures
        return [
            form.format(self.figures[name])
            for name, form in forms.items()
            if name in self.figures and not (name == "loss" and stage_loss)
        ]

    @property
    def speed(self) -> list[str]:
        """Tokens a second."""
        named = {"sampled": "drawn", "trained": "trained"}
        return [
            f"{self.figures[key]:,.0f} tokens/s {word}"
            for what, word in named.items()
            if (key := f"tokens_per_second/{what}") in self.figures
        ]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the board for as long as the block lasts, live where there is a terminal."""
        console = self._output.stderr
        if not console.is_terminal or console.is_dumb_terminal or self._output.quiet:
            yield
            return
        self._live = Live(
            _Lines(self),
            console=console,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def hide(self) -> None:
        """Take the live lines off the terminal, and give it its cursor back."""
        if self._live is not None:
            self._live.stop()


class _Lines:
    """Progress, then the figures, each line as wide as the terminal."""

    def __init__(self, board: TrainingBoard) -> None:
        self._board = board

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        board = self._board
        if not board.total:
            yield Text(f"{board.what} …", "dim")
            return
        head, tail = f"{board.what} {board.place} ", joined([board.left])
        room = options.max_width - len(head) - len(tail) - 1
        line = Text(head, no_wrap=True, overflow="ellipsis")
        if room >= LEAST_CELLS:
            line.append_text(_bar(board.update, board.total, min(BAR_CELLS, room)))
        line.append(tail)
        yield line
        for facts in (board.rewards, board.health, board.speed):
            if facts:
                yield from _wrapped(facts, options.max_width)


def _wrapped(facts: list[str], width: int) -> Iterator[Text]:
    """Yield lines that break between facts and nowhere else."""
    line = ""
    for fact in facts:
        longer = joined([line, fact])
        if line and len(longer) > width:
            yield Text(line, no_wrap=True, overflow="ellipsis")
            longer = fact
        line = longer
    yield Text(line, no_wrap=True, overflow="ellipsis")


def _bar(done: int, total: int, cells: int) -> Text:
    full = cells * done // max(1, total)
    return Text("━" * full, "green") + Text("━" * (cells - full) + " ", "bright_black")


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


SHARE = 10
"""A tenth of the updates is the beginning, and a tenth is the end."""
_SHOWN = ("reward/", "policy/entropy", "groups/flat", "loss", "mean_token_accuracy", "drift/mean")


def show_summary(folder: TrainFolder, output: Output) -> None:
    """Show how the figures of a finished run changed, and where its model is."""
    lines = list(read_metrics(folder.path / METRICS))
    stages = {stage: [line for line in lines if line["stage"] == stage] for stage in _stages(lines)}
    ends = {stage: first_and_last(of_stage) for stage, of_stage in stages.items()}
    if output.json:
        output.show_json(
            {
                "out": str(folder.path),
                "model": str(folder.model),
                "stages": {
                    stage: {
                        "updates": of_stage[-1]["update"],
                        "seconds": of_stage[-1]["seconds"],
                        "first": ends[stage][0],
                        "last": ends[stage][1],
                    }
                    for stage, of_stage in stages.items()
                },
            }
        )
        return
    for stage, (first, last) in ends.items():
        updates = stages[stage][-1]["update"]
        output.show(_table(stage, updates, first, last), Text(""))
    output.show(
        Text("to measure it: ", "dim")
        + Text(one_line(f"pdr-graph eval DATA --arm pdr --model {folder.model} --out runs/after"))
    )


def first_and_last(lines: Sequence[Line]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean of each figure over the first tenth of the updates, and over the last."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(_SHOWN))
    first, last = {}, {}
    for name in names:
        values = [float(line[name]) for line in lines if name in line]
        number = max(1, len(values) // SHARE)
        first[name], last[name] = fmean(values[:number]), fmean(values[-number:])
    return first, last


def _stages(lines: Sequence[Line]) -> list[Any]:
    return list(dict.fromkeys(line["stage"] for line in lines))


def _table(stage: str, updates: int, first: dict[str, float], last: dict[str, float]) -> Table:
    table = plain_table()
    named = {"rl": "training", "warm_start": "warm start"}[stage]
    table.add_column(f"{named}, {updates} update{'s' * (updates != 1)}")
    table.add_column("first tenth", justify="right")
    table.add_column("last tenth", justify="right")
    for name in first:
        table.add_row(name.replace("/", " "), f"{first[name]:.4g}", f"{last[name]:.4g}")
    return table
