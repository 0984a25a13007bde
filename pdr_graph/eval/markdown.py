"""A comparison as Markdown, to be pasted into a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pdr_graph.eval.comparison import Comparison
from pdr_graph.eval.sheets import Sheet, sheets


def to_markdown(comparison: Comparison) -> str:
    """Return all tables and caveats."""
    parts = [line for sheet in sheets(comparison) for line in _section(sheet)]
    if comparison.caveats:
        parts += ["### Before you believe it", "", *(f"- {_cell(c)}" for c in comparison.caveats)]
    return "\n".join(parts).rstrip() + "\n"


def _section(sheet: Sheet) -> Iterator[str]:
    yield from (f"### {sheet.title}", "", sheet.note, "")
    yield _row(sheet.columns)
    yield _row(["---", *["---:"] * (len(sheet.columns) - 1)])
    yield from map(_row, sheet.rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    # An arm's name is a user's own: it must not break out of its cell.
    return " ".join(re.sub(r"([\\|`<>])", r"\\\1", text).split())
