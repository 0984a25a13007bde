"""`pdr-graph compare` and `judge`: what runs of `pdr-graph eval` show, with intervals."""

import asyncio
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from pdr_graph.cli.commands import CompareCommand, JudgeCommand
from pdr_graph.cli.output import Output, one_line, plain_table, table_of
from pdr_graph.errors import ConfigError, counted
from pdr_graph.judge import DraftJudge

if TYPE_CHECKING:
    from pdr_graph.eval.comparison import Comparison
    from pdr_graph.eval.judge_fit import JudgeReport
    from pdr_graph.eval.report import Sheet
    from pdr_graph.eval.stats import Estimate


def compare_command(command: CompareCommand, output: Output) -> None:
    """Compare the arms of some runs, show it, and write what was asked for.

    Raises:
        ConfigError: a run cannot be read, a pair or k does not fit, a library is missing, or a
            file cannot be written.
    """
    _need("comparing runs", "numpy", "scipy")
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
        output.say(f"written: {file}")


def _need(what: str, *packages: str, of: str = "eval") -> None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{what} needs {package}, which is not installed; "
                f"install it with: pip install 'pdr-graph[{of}]'"
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
            _need("--plots", "matplotlib")
            from pdr_graph.eval.comparison_page import draw

            yield from draw(found, command.plots)
    except OSError as error:
        path = str(error.filename or command.plots or command.markdown)
        raise ConfigError(
            f"{path!r} cannot be written ({error.strerror}); name another place"
        ) from None
    if command.html is not None:
        _need("--html", "matplotlib")
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


# ------------------------------------------------------------------------------------ judges


def judge_command(command: JudgeCommand, output: Output) -> None:
    """Fit a judge or measure one, and show what it is worth.

    Raises:
        ConfigError: an option is missing, a run or judge cannot be read or does not fit, a library
            is missing, or a file cannot be written.
    """
    fits = command.action == "fit"
    needed, other = (command.out, command.judge) if fits else (command.judge, command.out)
    if needed is None or other is not None:
        wanted, unwanted = ("--out", "--judge") if fits else ("--judge", "--out")
        why = f"needs {wanted} FILE" if needed is None else f"takes no {unwanted}"
        raise ConfigError(f"judge {command.action} {why}")
    packages = ["numpy", "scipy", "sklearn", *(["matplotlib"] if command.plots else [])]
    _need("a judge", *packages, of="judge")
    from pdr_graph.eval.judge_fit import fit_judge, score_judge
    from pdr_graph.eval.records import read_run

    runs = [read_run(folder) for folder in command.runs]
    written: list[Path] = []
    if fits:
        made = asyncio.run(fit_judge(runs, folds=command.folds, seed=command.seed))
        made.judge.save(needed)
        written.append(needed)
        report = made.report
    else:
        judge = DraftJudge.load(needed)
        report = asyncio.run(score_judge(judge, runs, seed=command.seed))
        if seen := {run.header["data"]["sha256"] for run in runs} & set(judge.data):
            output.say(
                f"! the judge was fitted on {len(seen)} of these sets of problems; that flatters it"
            )
    if command.plots is not None:
        from pdr_graph.eval.comparison_page import draw_report

        try:
            written += draw_report(report, command.plots)
        except OSError as error:
            raise ConfigError(
                f"{str(command.plots)!r} cannot be written ({error.strerror}); name another place"
            ) from None
    if output.json:
        output.show_json({**report.to_json(), "written": [str(file) for file in written]})
    else:
        output.show(*_report_parts(report))
    for file in written:
        output.say(f"written: {file}")


def _report_parts(report: "JudgeReport") -> Iterator[RenderableType]:
    yield Text(report.verdict, "bold")
    yield Text(
        f"{counted(report.num_drafts, 'draft')} of {counted(report.num_problems, 'problem')}; "
        "judged by what was fitted on others",
        "dim",
    )
    yield Text()
    yield table_of(
        ["right, of 100 problems", "mean", "95 %"],
        [
            ("plain vote", *_share(report.vote)),
            ("vote, ties to the likeliest draft", *_share(report.tie_break)),
            ("vote by the judge's weights", *_share(report.judged)),
            ("any draft (the best choice)", *_share(report.best)),
        ],
    )
    yield Text()
    yield table_of(
        ["tells right from wrong drafts (0.5 is chance)", "all", "of one problem"],
        [
            (name, f"{each.pooled:.2f}", f"{each.within.value:.2f}")
            for name, each in report.discrimination.items()
        ],
    )
    if report.learning:
        yield Text()
        yield table_of(
            ["problems learned from", "of one problem", "points against the vote"],
            [
                (f"{each.num_problems:,}", f"{each.within:.2f}", f"{100 * each.gain:+.1f}")
                for each in report.learning
            ],
        )


def _share(estimate: "Estimate") -> tuple[str, str]:
    ends = estimate.interval
    spread = "–" if ends is None else f"[{100 * ends.low:.1f}, {100 * ends.high:.1f}]"
    return f"{100 * estimate.value:.1f}", spread
