"""The ledger as a table that fits its terminal."""

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from pdr_graph.budget import Ledger
from pdr_graph.cli.output import joined
from pdr_graph.cli.tables import plain_table
from pdr_graph.types import LedgerRow

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
