"""What `pdr-graph eval` says of its arms: their budgets before, their figures after."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pdr_graph.cli.output import Output
from pdr_graph.cli.tables import plain_table
from pdr_graph.cli.text import one_line
from pdr_graph.eval.plan import Plan
from pdr_graph.eval.records import read_run
from pdr_graph.eval.tally import Tally, tallies

WIDE = 72
"""Columns of a terminal that has room for every column of the table."""


def announcement(plan: Plan) -> list[str]:
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

    def __init__(self, counted: Sequence[Tally]) -> None:
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


_CELLS: Mapping[str, Callable[[Tally], str]] = {
    "samples": lambda tally: str(tally.samples),
    "accuracy": lambda tally: f"{tally.accuracy:.1%}",
    "no answer": lambda tally: f"{tally.no_answer:.1%}",
    "failed": lambda tally: str(tally.failed),
    "B_seq": lambda tally: f"{tally.b_seq:,.0f}",
    "B_total": lambda tally: f"{tally.b_total:,.0f}",
    "seconds": lambda tally: f"{tally.seconds:.1f}",
}
