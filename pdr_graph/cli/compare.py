"""`pdr-graph compare`: what runs of `pdr-graph eval` show, with intervals."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from pdr_graph.cli.output import Output, one_line, plain_table
from pdr_graph.errors import ConfigError

if TYPE_CHECKING:
    from pdr_graph.eval.comparison import Comparison
    from pdr_graph.eval.report import Sheet


def compare_command(
    folders: Sequence[Path],
    pairs: Sequence[str],
    ks: Sequence[int],
    confidence: float,
    seed: int,
    markdown: Path | None,
    plots: Path | None,
    html: Path | None,
    output: Output,
) -> None:
    """Compare the arms of some runs, show it, and write what was asked for.

    Raises:
        ConfigError: a run cannot be read, a pair or k does not fit, a library is missing, or a
            file cannot be written.
    """
    _need_libraries()
    from pdr_graph.eval.comparison import ComparisonRequest, compare
    from pdr_graph.eval.records import read_run

    request = ComparisonRequest(
        pairs=tuple(map(_pair, pairs)) or None,
        ks=tuple(ks) or None,
        confidence=confidence,
        seed=seed,
    )
    found = asyncio.run(compare([read_run(folder) for folder in folders], request))
    written = list(_write(found, markdown, plots, html))
    if output.json:
        output.show_json({**found.to_json(), "written": [str(file) for file in written]})
    else:
        output.show(*_tables(found))
    for file in written:
        output.say(f"written: {file}")


def _need_libraries() -> None:
    try:
        import numpy  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"comparing runs needs {error.name}, which is not installed; "
            "install it with: pip install 'pdr-graph[eval]'"
        ) from None


def _pair(text: str) -> tuple[str, str]:
    reference, colon, arm = text.partition(":")
    if not (reference and colon and arm):
        raise ConfigError(f"pair {text!r} is not REFERENCE:ARM, two names of arms")
    return reference, arm


def _write(
    found: "Comparison", markdown: Path | None, plots: Path | None, html: Path | None
) -> Iterator[Path]:
    if markdown is not None:
        from pdr_graph.eval.report import to_markdown

        try:
            markdown.parent.mkdir(parents=True, exist_ok=True)
            markdown.write_text(to_markdown(found), "utf-8")
        except OSError as error:
            raise ConfigError(_unwritable(markdown, error)) from None
        yield markdown
    if plots is not None or html is not None:
        _need_matplotlib()
    if plots is not None:
        from pdr_graph.eval.comparison_page import draw

        try:
            yield from draw(found, plots)
        except OSError as error:
            raise ConfigError(_unwritable(plots, error)) from None
    if html is not None:
        from pdr_graph.eval.comparison_page import comparison_page
        from pdr_graph.page import write_page

        write_page(html, comparison_page(found))
        yield html


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "--plots and --html need matplotlib, which is not installed; "
            "install it with: pip install 'pdr-graph[eval]'"
        ) from None


def _unwritable(path: Path, error: OSError) -> str:
    return f"{str(path)!r} cannot be written ({error.strerror}); name another place"


def _tables(found: "Comparison") -> list[RenderableType]:
    from pdr_graph.eval.report import sheets

    width = Console().width
    parts = [_section(sheet, width) for sheet in sheets(found)]
    caveats = [Text("! " + one_line(each), "yellow") for each in found.caveats]
    return [*chain.from_iterable(parts), *caveats]


def _section(sheet: "Sheet", width: int) -> list[RenderableType]:
    head = [Text(sheet.title, "bold"), Text(sheet.note, "dim"), Text()]
    table = plain_table()
    # Titles of two words take two lines, which is what makes the table fit 80 columns.
    titles = [title.replace(" ", "\n", 1) for title in sheet.columns[1:]]
    table.add_column(sheet.columns[0], overflow="fold")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True, vertical="bottom")
    for row in sheet.rows:
        table.add_row(*map(one_line, row))
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
