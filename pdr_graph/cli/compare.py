"""`pdr-graph compare`: what runs of `pdr-graph eval` show, with intervals."""

import asyncio
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from pdr_graph.cli.commands import CompareCommand
from pdr_graph.cli.output import Output, one_line, plain_table, table_of
from pdr_graph.errors import ConfigError, install_command

if TYPE_CHECKING:
    from pdr_graph.eval.comparison import Comparison
    from pdr_graph.eval.report import Sheet


def compare_command(command: CompareCommand, output: Output) -> None:
    """Compare the arms of some runs, show it, and write what was asked for.

    Raises:
        ConfigError: a run cannot be read, a pair or k does not fit, a library is missing, or a
            file cannot be written.
    """
    need("comparing runs", "numpy", "scipy")
    from pdr_graph.eval.comparison import ComparisonRequest, compare
    from pdr_graph.eval.records import read_run

    request = ComparisonRequest(
        pairs=tuple(map(_pair, command.pairs)) or None,
        ks=command.ks or None,
        confidence=command.confidence,
        seed=command.seed,
    )
    found = asyncio.run(compare([read_run(folder) for folder in command.runs], request))
    written = list(_write(found, command))
    if output.json:
        output.show_json({**found.to_json(), "written": [str(file) for file in written]})
    else:
        output.show(*tables(found, output.width))
    for file in written:
        output.say(f"written: {file}", to_copy=True)


def need(what: str, *packages: str, of: str = "eval") -> None:
    """Refuse a feature whose packages are not installed.

    Raises:
        ConfigError: a package is missing; the message names the first one and the extra that
            installs it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{what} needs {package}, which is not installed; "
                f"install it with: {install_command(of)}"
            )


def _pair(text: str) -> tuple[str, str]:
    reference, colon, arm = text.partition(":")
    if not (reference and colon and arm):
        raise ConfigError(f"pair {text!r} is not REFERENCE:ARM, two names of arms")
    return reference, arm


def _write(found: "Comparison", command: CompareCommand) -> Iterator[Path]:
    """Write what was asked for, and yield its files."""
    try:
        if command.markdown is not None:
            from pdr_graph.eval.report import to_markdown

            command.markdown.parent.mkdir(parents=True, exist_ok=True)
            command.markdown.write_text(to_markdown(found), "utf-8")
            yield command.markdown
        if command.plots is not None:
            need("--plots", "matplotlib")
            from pdr_graph.eval.comparison_page import draw

            yield from draw(found, command.plots)
    except OSError as error:
        path = str(error.filename or command.plots or command.markdown)
        raise ConfigError(
            f"{path!r} cannot be written ({error.strerror}); name another place"
        ) from None
    if command.html is not None:
        need("--html", "matplotlib")
        from pdr_graph.eval.comparison_page import comparison_page
        from pdr_graph.page import write_page

        write_page(command.html, comparison_page(found))
        yield command.html


def tables(found: "Comparison", width: int) -> list[RenderableType]:
    """Return a comparison for a terminal of so many columns."""
    from pdr_graph.eval.report import sheets

    parts = [_section(sheet, width) for sheet in sheets(found)]
    caveats = [Text("! " + one_line(each), "yellow") for each in found.caveats]
    return [*chain.from_iterable(parts), *caveats]


def _section(sheet: "Sheet", width: int) -> list[RenderableType]:
    head = [Text(sheet.title, "bold"), Text(sheet.note, "dim"), Text()]
    # Titles of two words take two lines, which is what makes the table fit 80 columns.
    titles = [sheet.columns[0], *(title.replace(" ", "\n", 1) for title in sheet.columns[1:])]
    rows = [[one_line(cell) for cell in row] for row in sheet.rows]
    if sum(GAP + _cells_of(column) for column in zip(titles, *rows, strict=True)) - GAP <= width:
        return [*head, table_of(titles, rows), Text()]
    if sheet.columns[0] == "arm":
        # An arm in each column; an interval goes beneath its figure.
        rows = [[title, *cells] for title, *cells in zip(sheet.columns, *rows, strict=True)]
        (_, *names), rows = rows[0], rows[1:]
    else:
        names = list(sheet.columns[1:])
    rows = [[row[0], *(cell.replace(" [", "\n[", 1) for cell in row[1:])] for row in rows]
    return [*head, *_side_by_side(sheet.columns[0], names, rows, width), Text()]


GAP = 2
LONGEST_NAME = 14
"""Columns that the name of an arm takes before it is broken."""


def _cells_of(column: Sequence[str]) -> int:
    return max(cell_len(line) for each in column for line in each.split("\n"))


def _side_by_side(
    first: str, names: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> Iterator[RenderableType]:
    """Yield tables of as many columns as fit beside the first, until all have been shown."""
    label = max(cell_len(first), _cells_of([row[0] for row in rows]))
    # The name of an arm is best broken before its fields, as in pdr@widths=8,4.
    names = [
        name.replace("@", "@\n").replace(";", ";\n") if cell_len(name) > LONGEST_NAME else name
        for name in names
    ]
    widths = [
        max(_cells_of([row[index] for row in rows]), min(LONGEST_NAME, _cells_of([name])))
        for index, name in enumerate(names, start=1)
    ]
    begin = 0
    while begin < len(names):
        end, used = begin, label
        while end < len(names) and (end == begin or used + 1 + widths[end] <= width):
            used += 1 + widths[end]
            end += 1
        table = plain_table(gap=1)
        table.add_column(first, overflow="fold", vertical="top")
        for name, cells in zip(names[begin:end], widths[begin:end], strict=True):
            table.add_column(name, justify="right", overflow="fold", width=cells)
        for row in rows:
            table.add_row(row[0], *row[1 + begin : 1 + end])
        if begin:
            yield Text()
        yield table
        begin = end
