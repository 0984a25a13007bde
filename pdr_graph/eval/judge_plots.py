"""Plots of what a judge is worth: whether its weights are true, whether it should learn more."""

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from pdr_graph.errors import ConfigError
from pdr_graph.eval.judge_fit import JudgeReport

BLUE, GREY = "#2b5fad", "#8a8a8a"


def draw_report(report: JudgeReport, folder: Path) -> Iterator[Path]:
    """Write the plots as PNG and SVG, and yield their files.

    Raises:
        ConfigError: the folder cannot be written.
    """
    figures = {"reliability": reliability_figure(report)}
    if report.learning:
        figures["learning"] = learning_figure(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for suffix in ("png", "svg"):
                file = folder / f"judge_{name}.{suffix}"
                figure.savefig(file, dpi=144)
                yield file
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r} cannot be written ({error.strerror}); name another place"
        ) from None


def reliability_figure(report: JudgeReport) -> Figure:
    """Return the share of right drafts by weight; on the diagonal, a weight is a probability."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="a probability")
    weights, right = [b.weight for b in report.reliability], [b.right for b in report.reliability]
    axes.plot(weights, right, marker="o", color=BLUE, label="the judge")
    axes.set(
        xlabel="mean weight of a tenth of the drafts",
        ylabel="share of right drafts",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def learning_figure(report: JudgeReport) -> Figure:
    """Return discrimination within problems by the number of problems learned from."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    sizes = [each.num_problems for each in report.learning]
    axes.plot(sizes, [each.within for each in report.learning], marker="o", color=BLUE)
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle="--")
    axes.annotate("chance", (sizes[0], 0.5), xytext=(0, 4), textcoords="offset points", color=GREY)
    axes.set(
        xlabel="problems learned from",
        ylabel="right draft above wrong one, within a problem",
        ylim=(0.4, 1.0),
        xlim=(0, None),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
