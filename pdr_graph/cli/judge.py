"""`pdr-graph judge`: fits a judge of drafts, or measures one."""

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from pdr_graph.cli.commands import JudgeCommand
from pdr_graph.cli.output import Output, table_of
from pdr_graph.errors import ConfigError
from pdr_graph.judge import DraftJudge

if TYPE_CHECKING:
    from pdr_graph.eval.judge_fit import JudgeReport
    from pdr_graph.eval.stats import Estimate


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
    for package in ("sklearn", *(("matplotlib",) if command.plots else ())):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"judge needs {package}; pip install 'pdr-graph[judge]'")
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
        from pdr_graph.eval.judge_plots import draw_report

        written += draw_report(report, command.plots)
    if output.json:
        output.show_json({**report.to_json(), "written": [str(file) for file in written]})
    else:
        output.show(*_parts(report))
    for file in written:
        output.say(f"written: {file}")


def _parts(report: "JudgeReport") -> Iterator[RenderableType]:
    yield Text(report.verdict, "bold")
    yield Text(
        f"{report.num_drafts:,} drafts of {report.num_problems:,} problems; "
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
