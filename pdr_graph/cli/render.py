"""A result for people: answer, solution, verdict, ledger, and how to look closer.

The ledger as a table that fits its terminal.
"""

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from pdr_graph.budget import Ledger
from pdr_graph.cli.output import Prose, joined, one_line, plain_table, unbroken
from pdr_graph.run import Result
from pdr_graph.types import LedgerRow, Verdict

WIDE = 96
"""Columns of a terminal that has room for every column of the table."""


class LedgerTable:
    """What each node of each round cost, and the sums."""

    def __init__(self, ledger: Ledger, *, seconds: float | None = None) -> None:
        self._ledger = ledger
        self._seconds = seconds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = self._ledger.per_round_and_node()
        yield _table(rows, wide=options.max_width >= WIDE)
        totals = self._ledger.to_json()
        yield Text(
            joined(
                [
                    f"B_total {totals['b_total']:,}",
                    f"B_seq {totals['b_seq']:,}",
                    f"nominal {totals['b_total_nominal']:,} and {totals['b_seq_nominal']:,}",
                    f"{totals['calls']} calls",
                    "" if self._seconds is None else f"{self._seconds:.1f} s",
                ]
            )
        )
        if self._ledger.estimated:
            yield Text("~ rests on an estimate", "dim")


def _table(rows: list[LedgerRow], *, wide: bool) -> Table:
    table = plain_table(gap=2 if wide else 1)
    titles = _WIDE_TITLES if wide else _NARROW_TITLES
    for position, title in enumerate(titles):
        table.add_column(title, justify="left" if position == 1 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_wide_cells(row) if wide else _narrow_cells(row)))
    return table


_WIDE_TITLES = (
    "round",
    "node",
    "calls",
    "prompt",
    "cached",
    "completion",
    "thought",
    "failed",
    "aborted",
    "seconds",
)
_NARROW_TITLES = ("r", "node", "calls", "tokens", "lost", "s")


def _wide_cells(row: LedgerRow) -> list[str]:
    about = "~" if row["estimated"] else ""
    return [
        str(row["round"]),
        row["node"],
        str(row["calls"]),
        f"{about}{row['prompt_tokens']:,}",
        f"{row['cached_tokens']:,}",
        f"{about}{row['completion_tokens']:,}",
        f"{row['reasoning_tokens']:,}",
        str(row["failed"]),
        str(row["aborted"]),
        f"{row['seconds']:.1f}",
    ]


def _narrow_cells(row: LedgerRow) -> list[str]:
    about = "~" if row["estimated"] else ""
    return [
        str(row["round"]),
        row["node"],
        str(row["calls"]),
        f"{about}{row['prompt_tokens'] + row['completion_tokens']:,}",
        str(row["failed"] + row["aborted"]),
        f"{row['seconds']:.1f}",
    ]


def result_parts(result: Result, look_closer: str | None) -> Iterator[RenderableType]:
    """Yield what to print of a result.

    Args:
        result: The run.
        look_closer: The command that shows more of it; None where the run is not kept.
    """
    yield labelled("answer", answer_text(result.answer))
    yield Text()
    yield heading("solution")
    yield Prose(result.solution)
    yield Text()
    yield labelled("verdict", verdict_text(result.verdict))
    yield Text()
    yield heading("ledger")
    yield LedgerTable(result.ledger, seconds=result.seconds)
    yield Text()
    for note in result.notes:
        yield Text(f"note: {one_line(note)}", "yellow")
    yield unbroken(labelled("thread", Text(one_line(result.thread_id))))
    if look_closer is not None:
        yield unbroken(labelled("look closer", Text(look_closer)))


def heading(text: str) -> Text:
    """Return the heading of a part."""
    return Text(text, "bold")


def labelled(label: str, value: Text) -> Text:
    """Return a label and its value on one line."""
    return Text.assemble((label, "bold"), "  ", value)


def answer_text(answer: str | None) -> Text:
    """Return the answer; a solution without one is said to have none."""
    return Text("none stated", "dim") if answer is None else Text(one_line(answer), "bold green")


def verdict_text(verdict: Verdict) -> Text:
    """Return a verdict in words."""
    if verdict["verifier"] == "none":
        return Text("not judged", "dim")
    words = {True: ("accepted", "green"), False: ("rejected", "red"), None: ("undecided", "yellow")}
    by = f" by {one_line(verdict['verifier'])}"
    reason = one_line(verdict["reason"])
    return Text(*words[verdict["accepted"]]) + Text(f"{by}: {reason}" if reason else by)
