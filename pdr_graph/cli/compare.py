"""`pdr-graph compare`: what runs of `pdr-graph eval` show, with intervals."""

import asyncio
import importlib.util
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from pdr_graph.cli.commands import CompareCommand
from pdr_graph.cli.output import Output, one_line, table_of
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
        output.show(*_tables(found))
    for file in written:
        output.say(f"written: {file}")


def need(what: str, *packages: str, of: str = "eval") -> None:
    """Refuse a feature whose packages are not installed.

    Raises:
        ConfigError: it names the first of them, and the extra that holds it.
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


def _tables(found: "Comparison") -> list[RenderableType]:
    from pdr_graph.eval.report import sheets

    width = Console().width
    parts = [_section(sheet, width) for sheet in sheets(found)]
    caveats = [Text("! " + one_line(each), "yellow") for each in found.caveats]
    return [*chain.from_iterable(parts), *caveats]


def _section(sheet: "Sheet", width: int) -> list[RenderableType]:
    head = [Text(sheet.title, "bold"), Text(sheet.note, "dim"), Text()]
    # Titles of two words take two lines, which is what makes the table fit 80 columns.
    titles = [title.replace(" ", "\n", 1) for title in sheet.columns[1:]]
    table = table_of([sheet.columns[0], *titles], (map(one_line, row) for row in sheet.rows))
    columns = zip([sheet.columns[0], *titles], *sheet.rows, strict=True)
    needed = sum(
        2 + max(cell_len(line) for each in column for line in each.split("\n"))
        for column in columns
    )
    body = [table] if needed <= width + 2 else _cards(sheet)
    return [*head, *body, Text()]


def _cards(sheet: "Sheet") -> list[RenderableType]:
    """Return each row as lines of its own, for a terminal that the table does not fit."""
    lines: list[RenderableType] = []
    for name, *cells in sheet.rows:
        lines.append(Text(one_line(name), "bold"))
        lines += [
            Text(f"  {title}: {one_line(cell)}")
            for title, cell in zip(sheet.columns[1:], cells, strict=True)
        ]
    return lines
