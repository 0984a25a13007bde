"""What `pdr-graph eval` shows of its arms: budgets before, progress during, figures after."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pdr_graph.cli.live import Bar, Board, duration
from pdr_graph.cli.output import Output, joined, one_line, table_of, unbroken
from pdr_graph.errors import counted
from pdr_graph.eval.plan import EvalPlan
from pdr_graph.eval.records import ArmTally, Key, SampleRecord, key_of, read_run, tallies
from pdr_graph.eval.runner import EvalWatcher
from pdr_graph.eval.sample import Sample
from pdr_graph.events import RunEvent


@dataclass(slots=True)
class ArmCount:
    """How far one arm is."""

    total: int
    records: dict[Key, tuple[bool, bool, int]] = field(default_factory=dict)
    """Of each finished sample: whether it is right, whether it failed, its tokens."""
    live: dict[Key, int] = field(default_factory=dict)
    """Tokens so far of each sample that runs in this process."""
    done_here: int = 0
    """Samples finished since this process began."""

    @property
    def done(self) -> int:
        """Finished samples."""
        return len(self.records)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens, running samples included."""
        finished = sum(tokens for _, _, tokens in list(self.records.values()))
        return finished + sum(list(self.live.values()))

    @property
    def failed(self) -> int:
        """Samples without a solution."""
        return sum(failed for _, failed, _ in list(self.records.values()))

    @property
    def accuracy(self) -> float | None:
        """Share of right answers among finished samples; None before the first."""
        rights = [right for right, _, _ in list(self.records.values())]
        return sum(rights) / len(rights) if rights else None

    def left_s(self, elapsed: float) -> float | None:
        """Return the seconds left at the pace so far; None before there is one."""
        if self.done >= self.total:
            return 0.0
        return elapsed / self.done_here * (self.total - self.done) if self.done_here else None

    def facts(self, elapsed: float) -> list[str]:
        """Return samples, accuracy, losses, tokens and the time left."""
        left = self.left_s(elapsed)
        return [
            f"{self.done}/{self.total}",
            "" if self.accuracy is None else f"{self.accuracy:.1%}",
            f"{self.failed} failed" if self.failed else "",
            f"{_short(self.tokens)} tokens",
            "" if not left else f"{duration(left)} left",
        ]


class ArmsBoard(Board, EvalWatcher):
    """Counts the samples of each arm."""

    silence_s = 30.0

    def __init__(self, arms: Sequence[str], total: int, output: Output) -> None:
        self.arms = {name: ArmCount(total) for name in arms}
        self._output = output
        self._began: float | None = None
        """None until the first sample starts here; recorded samples say nothing of the pace."""
        self._said_waiting = False

    def started(self, sample: Sample) -> None:
        """Start the clock."""
        self._began = self._began or perf_counter()

    def event(self, sample: Sample, event: RunEvent) -> None:
        """Count tokens."""
        spent = event.get("tokens") if event.get("event") == "draft" else event.get("spent")
        if isinstance(spent, int):
            live = self.arms[sample.arm.name].live
            live[sample.key] = live.get(sample.key, 0) + spent

    def finished(self, record: SampleRecord) -> None:
        """Count a sample."""
        arm, key = self.arms[record["arm"]], key_of(record)
        arm.live.pop(key, None)
        arm.done_here += self._began is not None
        failed = record["reason"] == "failed"
        arm.records[key] = record["correct"], failed, record["ledger"]["b_total"]
        if failed:
            where = f"{record['arm']}, problem {record['problem_id']}, sample {record['sample']}"
            self._output.say(f"failed: {where}: {record['error']}")

    def waiting(self, number: int) -> None:
        """Say once that other processes hold the remaining samples."""
        if not self._said_waiting:
            self._output.say(f"other processes run {counted(number, 'sample')}; waiting")
        self._said_waiting = True

    @property
    def elapsed(self) -> float:
        """Seconds since the first sample started here."""
        return 0.0 if self._began is None else perf_counter() - self._began

    def bars(self) -> list[Bar]:
        """Return one line for each arm."""
        return [
            Bar(name, arm.done, arm.total, joined(arm.facts(self.elapsed)))
            for name, arm in self.arms.items()
        ]

    def lines(self) -> list[str]:
        """Say of each arm how far it is."""
        return [f"{one_line(bar.label)}: {bar.facts}" for bar in self.bars()]


def _short(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= 10 * size:
            return f"{number / size:.0f}{unit}"
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


GAP = 2
"""Spaces between the columns of the table."""


def announcement(plan: EvalPlan) -> list[str]:
    """Say what will run, and where its budgets come from."""
    problems = plan.problems
    lines = [
        f"{counted(len(problems.problems), 'problem')} of {problems.source}; {problems.scored_by}",
        f"{counted(len(plan.arms), 'arm')}, {counted(plan.samples, 'sample')} each",
    ]
    for arm in plan.arms:
        budget = arm.budget
        nominal = (
            f"{budget['max_tokens']} tokens a call, B_seq {budget['b_seq_nominal']:,} and "
            f"B_total {budget['b_total_nominal']:,} nominal"
        )
        lines.append(f"{arm.name}: {nominal}{budget['derived'] and '; ' + budget['derived']}")
    return lines


def show_arms(out: Path, output: Output) -> None:
    """Show what is recorded of each arm."""
    run = read_run(out)
    found = tallies(run)
    if output.json:
        output.show_json({"out": str(out), "arms": {each.arm: each.to_json() for each in found}})
        return
    failed = sum(each.failed for each in found)
    again = f"{counted(failed, 'sample')} failed; --retry-failed repeats them" if failed else ""
    output.show(
        ArmTable(found),
        Text(again and f"\n{again}\n"),
        Text("Means over samples. For intervals and differences run:", "dim"),
        unbroken(Text(one_line(f"pdr-graph compare {shlex.quote(str(out))}"))),
    )


class ArmTable:
    """One line for each arm, with the columns that its terminal has room for."""

    def __init__(self, counted: Sequence[ArmTally]) -> None:
        self._counted = counted

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = [
            {"arm": one_line(each.arm), **{title: cell(each) for title, cell in _CELLS.items()}}
            for each in self._counted
        ]
        titles = ["arm", *_CELLS]
        for title in _GIVING:
            widths = [max(map(cell_len, (name, *(row[name] for row in rows)))) for name in titles]
            if sum(widths) + GAP * (len(titles) - 1) <= options.max_width:
                break
            titles.remove(title)
        yield table_of(titles, ([row[title] for title in titles] for row in rows), gap=GAP)


_CELLS: Mapping[str, Callable[[ArmTally], str]] = {
    "samples": lambda tally: str(tally.samples),
    "accuracy": lambda tally: f"{tally.accuracy:.1%}",
    "no answer": lambda tally: f"{tally.no_answer:.1%}",
    "failed": lambda tally: str(tally.failed),
    "B_seq": lambda tally: f"{tally.b_seq:,.0f}",
    "B_total": lambda tally: f"{tally.b_total:,.0f}",
    "seconds": lambda tally: f"{tally.seconds:.1f}",
}
_GIVING = ("seconds", "samples", "no answer", "failed")
"""What a narrow terminal leaves out, the first to give way first."""
