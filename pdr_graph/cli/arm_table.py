"""What `pdr-graph eval` says of its arms: their budgets before, their figures after."""

from pathlib import Path

from rich.text import Text

from pdr_graph.cli.output import Output
from pdr_graph.cli.tables import plain_table
from pdr_graph.cli.text import one_line
from pdr_graph.eval.plan import Plan
from pdr_graph.eval.records import read_run
from pdr_graph.eval.tally import Tally, tallies


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
    table = plain_table()
    table.add_column("arm", overflow="fold")
    for title in ("samples", "accuracy", "no answer", "failed", "B_seq", "B_total", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in counted:
        table.add_row(*_row(each))
    output.show(
        table,
        Text(),
        Text("means over samples; intervals and differences: ", "dim")
        + Text(one_line(f"pdr-graph compare {out}")),
    )


def _row(tally: Tally) -> list[str]:
    return [
        one_line(tally.arm),
        str(tally.samples),
        f"{tally.accuracy:.1%}",
        f"{tally.no_answer:.1%}",
        str(tally.failed),
        f"{tally.b_seq:,.0f}",
        f"{tally.b_total:,.0f}",
        f"{tally.seconds:.1f}",
    ]
