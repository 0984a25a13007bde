"""Shows an evaluation that goes on: one line an arm, live on a terminal, now and then elsewhere.

What `pdr-graph eval` says of its arms: their budgets before, their figures after.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from pdr_graph.cli.output import Output, joined, one_line, plain_table
from pdr_graph.eval.plan import EvalPlan
from pdr_graph.eval.records import ArmTally, Key, SampleRecord, key_of, read_run, tallies
from pdr_graph.eval.runner import EvalWatcher
from pdr_graph.eval.sample import Sample
from pdr_graph.events import RunEvent

HEARTBEAT_S = 30.0
REFRESH_PER_S = 4
BAR_CELLS, LEAST_CELLS = 20, 6
LONGEST_NAME = 28


@dataclass(slots=True)
class ArmCount:
    """How far one arm is."""

    total: int
    records: dict[Key, tuple[bool, bool, int]] = field(default_factory=dict)
    """Of each finished sample: whether it is right, whether it failed, its tokens."""
    live: dict[Key, int] = field(default_factory=dict)
    """Tokens so far of each sample that is worked on here."""
    done_here: int = 0
    """Samples that were finished since this process began."""

    @property
    def done(self) -> int:
        """Finished samples."""
        return len(self.records)

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens, those of samples under way included."""
        return sum(tokens for _, _, tokens in self.records.values()) + sum(self.live.values())

    @property
    def failed(self) -> int:
        """Samples without a solution."""
        return sum(failed for _, failed, _ in self.records.values())

    @property
    def accuracy(self) -> float | None:
        """Share of right answers among finished samples; None before the first."""
        return (
            sum(right for right, _, _ in self.records.values()) / self.done if self.done else None
        )

    def left_s(self, elapsed: float) -> float | None:
        """Return the seconds that are left at the pace so far; None before there is one."""
        if self.done >= self.total:
            return 0.0
        return elapsed / self.done_here * (self.total - self.done) if self.done_here else None


class Board(EvalWatcher):
    """Counts what happens, and tells it."""

    def __init__(self, arms: Sequence[str], total: int, output: Output) -> None:
        self.arms = {name: ArmCount(total) for name in arms}
        self._output = output
        self._began: float | None = None
        """None until the first sample is begun here; what was read before has no pace."""
        self._told_waiting = False

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
        """Say once that others are at work."""
        if not self._told_waiting:
            self._output.say(f"{number} samples are with other processes; waiting for them")
        self._told_waiting = True

    @property
    def elapsed(self) -> float:
        """Seconds since the first sample was begun here."""
        return 0.0 if self._began is None else perf_counter() - self._began

    def status(self) -> list[str]:
        """Tell each arm in a line."""
        return [
            f"{one_line(name)}: {joined(_facts(arm, self.elapsed))}"
            for name, arm in self.arms.items()
        ]


@asynccontextmanager
async def board_shown(output: Output, board: Board) -> AsyncIterator[None]:
    """Show a board for as long as the block lasts."""
    if output.quiet:
        yield
    elif output.stderr.is_terminal and not output.stderr.is_dumb_terminal:
        with Live(
            _Bars(board),
            console=output.stderr,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield
    else:
        task = asyncio.create_task(_now_and_then(output, board))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def _now_and_then(output: Output, board: Board) -> None:
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        for line in board.status():
            output.say(line)


def _facts(arm: ArmCount, elapsed: float) -> list[str]:
    left = arm.left_s(elapsed)
    return [
        f"{arm.done}/{arm.total}",
        "" if arm.accuracy is None else f"{arm.accuracy:.1%}",
        f"{arm.failed} failed" if arm.failed else "",
        f"{_short(arm.tokens)} tokens",
        "" if not left else f"{_duration(left)} left",
    ]


class _Bars:
    """One line for each arm: its name, a bar, the facts."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        arms = self._board.arms
        widest = min(max(map(len, arms)), LONGEST_NAME, options.max_width // 3)
        for name, arm in arms.items():
            shown = one_line(name)
            shown = shown if len(shown) <= widest else shown[: widest - 1] + "…"
            facts = joined(_facts(arm, self._board.elapsed))
            room = options.max_width - widest - len(facts) - 2
            line = Text(f"{shown:<{widest}} ", no_wrap=True, overflow="ellipsis")
            if room >= LEAST_CELLS:
                line.append_text(_bar(arm, min(BAR_CELLS, room)))
            line.append(facts)
            yield line


def _bar(arm: ArmCount, cells: int) -> Text:
    full = cells * arm.done // max(1, arm.total)
    return Text("━" * full, "green") + Text("━" * (cells - full) + " ", "bright_black")


def _short(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= 10 * size:
            return f"{number / size:.0f}{unit}"
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


WIDE = 72
"""Columns of a terminal that has room for every column of the table."""


def announcement(plan: EvalPlan) -> list[str]:
    """Say what will be run, and where its budgets come from."""
    problems = plan.problems
    lines = [
        f"{_many(len(problems.problems), 'problem')} of {problems.source}; {problems.scored_by}",
        f"{_many(len(plan.arms), 'arm')}, {_many(plan.samples, 'sample')} each",
    ]
    for arm in plan.arms:
        budget = arm.budget
        nominal = (
            f"{budget['max_tokens']} tokens a call, B_seq {budget['b_seq_nominal']:,} and "
            f"B_total {budget['b_total_nominal']:,} nominal"
        )
        lines.append(f"{arm.name}: {nominal}{budget['derived'] and '; ' + budget['derived']}")
    return lines


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def show_arms(out: Path, output: Output) -> None:
    """Show what is recorded of each arm."""
    run = read_run(out)
    counted = tallies(run)
    if output.json:
        output.show_json({"out": str(out), "arms": {each.arm: each.to_json() for each in counted}})
        return
    failed = sum(each.failed for each in counted)
    again = (
        f"{_many(failed, 'sample')} failed; --retry-failed asks for them again" if failed else ""
    )
    output.show(
        ArmTable(counted),
        Text(again and f"\n{again}\n"),
        Text("means over samples; intervals and differences: ", "dim")
        + Text(one_line(f"pdr-graph compare {out}")),
    )


class ArmTable:
    """One line for each arm, with the columns that its terminal has room for."""

    def __init__(self, counted: Sequence[ArmTally]) -> None:
        self._counted = counted

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        titles = list(_CELLS) if options.max_width >= WIDE else ["accuracy", "B_seq", "B_total"]
        table = plain_table()
        table.add_column("arm", overflow="fold")
        for title in titles:
            table.add_column(title, justify="right", no_wrap=True)
        for each in self._counted:
            table.add_row(one_line(each.arm), *(_CELLS[title](each) for title in titles))
        yield table


_CELLS: Mapping[str, Callable[[ArmTally], str]] = {
    "samples": lambda tally: str(tally.samples),
    "accuracy": lambda tally: f"{tally.accuracy:.1%}",
    "no answer": lambda tally: f"{tally.no_answer:.1%}",
    "failed": lambda tally: str(tally.failed),
    "B_seq": lambda tally: f"{tally.b_seq:,.0f}",
    "B_total": lambda tally: f"{tally.b_total:,.0f}",
    "seconds": lambda tally: f"{tally.seconds:.1f}",
}
