"""What `pdr-graph train` shows of a run: its progress, and its first figures beside its last."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from time import monotonic

from rich.table import Table
from rich.text import Text

from pdr_graph.cli.live import Bar, duration
from pdr_graph.cli.output import Output, joined, one_line, table_of
from pdr_graph.errors import counted
from pdr_graph.train.run_folder import METRICS, Line, Stage, TrainFolder, read_metrics

_STAGES: Mapping[Stage, str] = {"warm_start": "warm start", "rl": "training"}


class TrainBoard:
    """The newest figure of every kind."""

    silence_s = 10.0

    def __init__(self, output: Output) -> None:
        self.what = "starting"
        self.update, self.total = 0, 0
        self.figures: dict[str, float] = {}
        self._output = output
        self._updates_per_step = 1
        self._from, self._began = 0, 0.0

    def phase(self, what: str) -> None:
        """Say what is done now."""
        self.what, self.total = what, 0
        self._say(what)

    def begins(self, stage: Stage, update: int, total: int, updates_per_step: int) -> None:
        """Start the clock of a stage."""
        self.what, self.total = _STAGES[stage], total
        self.update = self._from = update
        self._updates_per_step, self._began = updates_per_step, monotonic()
        self.figures = {}
        if update:
            self._output.say(f"{self.what}: continues after {self.place}")

    def told(self, line: Line) -> None:
        """Take the figures of an update; the first and the last are said at once."""
        first = not self.figures
        self.update = line["update"]
        self.figures |= {name: value for name, value in line.items() if isinstance(value, float)}
        if first or self.update == self.total:
            self._say(*self.lines())

    def bars(self) -> list[Bar]:
        """Return the stage with a bar for its updates."""
        if not self.total:
            return [Bar(f"{self.what} …")]
        return [Bar(f"{self.what} {self.place}", self.update, self.total, self.left)]

    def details(self) -> list[list[str]]:
        """Return rewards, health and speed."""
        return [self.rewards, self.health, self.speed] if self.total else []

    def lines(self) -> list[str]:
        """Say all in one line, once there are figures."""
        if not self.figures:
            return []
        facts = [*self.rewards, *self.health, *self.speed, self.left]
        return [joined([f"{self.what}: {self.place}", *facts])]

    def _say(self, *lines: str) -> None:
        if not self._output.is_live:
            for line in lines:
                self._output.say(line)

    @property
    def place(self) -> str:
        """Steps done, of all steps."""
        if self._updates_per_step == 1:
            return f"{self.update}/{self.total}"
        per_step = self._updates_per_step
        return f"{self.update / per_step:g}/{self.total / per_step:g}"

    @property
    def left(self) -> str:
        """Time left at the pace of this process; empty before there is one."""
        done = self.update - self._from
        if not done or self.update >= self.total:
            return ""
        return f"{duration((monotonic() - self._began) / done * (self.total - self.update))} left"

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
        """Figures that tell whether learning goes well."""
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
        named = {"sampled": "sampled", "trained": "trained"}
        return [
            f"{self.figures[key]:,.0f} tokens/s {word}"
            for what, word in named.items()
            if (key := f"tokens_per_second/{what}") in self.figures
        ]


SHARE = 10
"""The first and last tenth of the updates are compared."""
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
        Text("To measure it run: ", "dim")
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


def _stages(lines: Sequence[Line]) -> list[Stage]:
    return list(dict.fromkeys(line["stage"] for line in lines))


def _table(stage: Stage, updates: int, first: dict[str, float], last: dict[str, float]) -> Table:
    title = f"{_STAGES[stage]}, {counted(updates, 'update')}"
    rows = [(name.replace("/", " "), f"{first[name]:.4g}", f"{last[name]:.4g}") for name in first]
    return table_of((title, "first tenth", "last tenth"), rows)
