"""A comparison as plots, and as one self-contained page; and the plots of a judge.

The plots show accuracy against cost: the paper's figure 1 with intervals. Up and to the left is
better. Both actual costs, B_seq and B_total, are on a logarithmic axis, and bars span the
confidence intervals of both means, whole. Arms of equal cost stand side by side. A plot of few
problems says that nothing can be believed of it. The colours are Okabe and Ito's, which
colour-blind readers can tell apart; every arm also has its own marker.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from pdr_graph.errors import counted
from pdr_graph.eval.comparison import Comparison
from pdr_graph.eval.report import percent, sheets
from pdr_graph.eval.stats import Estimate
from pdr_graph.eval.summary import ArmSummary
from pdr_graph.page import render

if TYPE_CHECKING:
    from pdr_graph.eval.judge_fit import JudgeReport

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX<>*hp"
AXES = {
    "b_seq": "B_seq: tokens of a sample on the critical path",
    "b_total": "B_total: tokens of a sample in all calls",
}
GREY = "#8a8a8a"
ALARM = "#a61b1b"
FEW_PROBLEMS = 30
"""Below so many problems, an interval of accuracy spans up to 36 points and more (a share of half,
at 95 %): arms cannot be told apart."""
ALIKE = 0.04
"""Part of the axis within which two costs count as equal."""
FORMATS = ("png", "svg")
NARROW, WIDE = 5, 400
"""Ratios of an axis's ends. Below the first, ticks at 1, 2 and 5 times a power of ten are too few;
above the second, they touch."""


def draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write one plot for each cost, as PNG and SVG, and return the files.

    An arm whose samples all failed has no cost, and so no point.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for what in AXES:
        written += _save(plot(comparison, what), folder, f"accuracy-{what.replace('_', '-')}")
    return written


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    for file, suffix in zip(files, FORMATS, strict=True):
        # Text stays text, and equal figures give equal files.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pdr-graph"}):
            figure.savefig(file, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return files


def plot(comparison: Comparison, what: str) -> Figure:
    """Return the plot of accuracy against `b_seq` or `b_total`, one point for each arm."""
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = [arm for arm in comparison.arms if what in arm.cost]
    shifts = side_by_side([arm.cost[what].mean.value for arm in shown])
    for index, (arm, shift) in enumerate(zip(shown, shifts, strict=True)):
        spent = _shifted(arm.cost[what].mean, shift)
        axes.errorbar(
            spent.value,
            100 * arm.accuracy.value,
            # A logarithmic axis has no place for what is not above 0.
            xerr=_bars(spent, least=spent.value * 0.05),
            yerr=_bars(arm.accuracy, scale=100),
            fmt=MARKERS[index % len(MARKERS)],
            color=COLORS[index % len(COLORS)],
            markersize=7,
            elinewidth=1.2,
            capsize=3,
            label=f"{arm.name} (n = {arm.num_problems:,})".replace("$", r"\$"),
        )
    axes.set(xscale="log", xlabel=AXES[what], ylabel="accuracy, %", ylim=_heights(shown))
    axes.set_yticks(range(0, 101, 20))
    if few := too_few(comparison):
        axes.set_title(few, color=ALARM, fontsize=9, loc="left")
    _plain_ticks(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        # Below: beside it, the plot would have half of a phone's width.
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def too_few(comparison: Comparison) -> str:
    """Return a warning where there are too few problems to believe anything; else nothing."""
    fewest = min((arm.num_problems for arm in comparison.arms), default=0)
    if fewest >= FEW_PROBLEMS:
        return ""
    n = counted(fewest, "problem")
    return f"n = {n}: too few to believe any difference; {FEW_PROBLEMS} are the least"


def side_by_side(costs: Sequence[float]) -> list[float]:
    """Return the factor by which each point is shifted, so that equal costs are not on one line."""
    places = [math.log(cost) if cost > 0 else 0.0 for cost in costs]
    # At least a factor of two: where all are alike, the axis is that wide.
    span = max(max(places, default=0.0) - min(places, default=0.0), math.log(2))
    step, order = ALIKE * span, sorted(range(len(places)), key=places.__getitem__)
    # The nearest places that are a step apart in this order: neighbours that are too near form a
    # block about their mean, which joins the block before it where they meet.
    blocks: list[list[int]] = []
    starts: list[float] = []
    for index in order:
        blocks.append([index])
        starts.append(places[index])
        while len(blocks) > 1 and starts[-1] < starts[-2] + step * len(blocks[-2]):
            blocks[-2:], starts[-2:] = [blocks[-2] + blocks[-1]], [0.0]
            middle = sum(places[each] for each in blocks[-1]) / len(blocks[-1])
            starts[-1] = middle - step * (len(blocks[-1]) - 1) / 2
    shifts = [0.0] * len(places)
    for block, start in zip(blocks, starts, strict=True):
        for number, index in enumerate(block):
            shifts[index] = start + number * step - places[index] if len(block) > 1 else 0.0
    return [math.exp(shift) for shift in shifts]


def _shifted(spent: Estimate, factor: float) -> Estimate:
    low, high = (end if end is None else end * factor for end in (spent.low, spent.high))
    return replace(spent, value=spent.value * factor, low=low, high=high)


def _heights(arms: Sequence[ArmSummary]) -> tuple[float, float]:
    """Return the ends of the axis of accuracy: room for each marker and for each whisker's end."""
    ends = [each.accuracy.interval for each in arms if each.accuracy.interval is not None]
    low = min((100 * each.low for each in ends), default=0.0)
    high = max((100 * each.high for each in ends), default=100.0)
    return min(-4.0, low - 2), max(104.0, high + 2)


def _bars(
    estimate: Estimate, *, scale: float = 1.0, least: float = -math.inf
) -> list[list[float]] | None:
    """Return the lengths below and above; for a log axis, none reaches below `least`."""
    ends = estimate.interval
    if ends is None:
        return None
    below, above = estimate.value - max(least, ends.low), ends.high - estimate.value
    return [[scale * max(0.0, below)], [scale * max(0.0, above)]]


def _plain_ticks(axes: Axes) -> None:
    """Label the axis 2,000 and 5,000 instead of powers of ten, with few enough labels."""
    axes.margins(x=0.15)
    low, high = axes.get_xlim()
    subs = (1.0,) if high > WIDE * low else (1.0, 2.0, 5.0)
    narrow = high < NARROW * low
    axes.xaxis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(base=10, subs=subs))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page."""

    source: str
    """A `data:` URL. As an image, an SVG runs no script, whatever the name of an arm."""
    caption: str
    text: str
    """For readers who cannot see it."""


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    return render(
        "comparison",
        comparison=comparison,
        sheets=sheets(comparison),
        plots=[_plot(comparison, what) for what in AXES],
        too_few=too_few(comparison),
        version=version("pdr-graph"),
    )


def _plot(comparison: Comparison, what: str) -> Plot:
    drawn = BytesIO()
    with rc_context({"svg.hashsalt": "pdr-graph"}):
        plot(comparison, what).savefig(drawn, format="svg", metadata={"Date": None})
    points = "; ".join(
        f"{arm.name}: {percent(arm.accuracy.value)} at {arm.cost[what].mean.value:,.0f} tokens"
        for arm in comparison.arms
        if what in arm.cost
    )
    return Plot(
        "data:image/svg+xml;base64," + base64.b64encode(drawn.getvalue()).decode(),
        f"Accuracy against {AXES[what]}. Bars are confidence intervals; arms of equal cost stand "
        "side by side.",
        f"Accuracy against {AXES[what]}. {points}",
    )


# ------------------------------------------------------------------------------------ judges


def draw_report(report: "JudgeReport", folder: Path) -> list[Path]:
    """Write reliability and learning curve, if one was made, as PNG and SVG; return the files.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = _save(reliability_figure(report), folder, "judge-reliability")
    if report.learning:
        written += _save(learning_figure(report), folder, "judge-learning")
    return written


def reliability_figure(report: "JudgeReport") -> Figure:
    """Return the share of right drafts by weight; on the diagonal, a weight is a probability."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="a probability")
    weights, right = [b.weight for b in report.reliability], [b.right for b in report.reliability]
    axes.plot(weights, right, marker="o", color=COLORS[0], label="the judge")
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


def learning_figure(report: "JudgeReport") -> Figure:
    """Return discrimination within problems by the number of problems learned from."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    sizes = [each.num_problems for each in report.learning]
    axes.plot(sizes, [each.within for each in report.learning], marker="o", color=COLORS[0])
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
