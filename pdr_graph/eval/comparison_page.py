"""A comparison as plots, and as one self-contained page: caveats, plots, tables.

The plots show accuracy against cost: the paper's figure 1 with intervals. Up and to the left is
better. Both actual costs, B_seq and B_total, are on a logarithmic axis, and bars span the
confidence intervals of both means. The colours are Okabe and Ito's, which colour-blind readers can
tell apart; every arm also has its own marker.
"""

import base64
import math
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from pdr_graph.eval.comparison import Comparison
from pdr_graph.eval.report import percent, sheets
from pdr_graph.eval.stats import Estimate
from pdr_graph.page import render

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX<>*hp"
AXES = {
    "b_seq": "B_seq: tokens of a sample on the critical path",
    "b_total": "B_total: tokens of a sample in all calls",
}
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
        figure = plot(comparison, what)
        for suffix in FORMATS:
            file = folder / f"accuracy-{what.replace('_', '-')}.{suffix}"
            # Text stays text, and equal figures give equal files.
            with rc_context({"svg.fonttype": "none", "svg.hashsalt": "pdr-graph"}):
                figure.savefig(file, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
            written.append(file)
    return written


def plot(comparison: Comparison, what: str) -> Figure:
    """Return the plot of accuracy against `b_seq` or `b_total`, one point for each arm."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = [arm for arm in comparison.arms if what in arm.cost]
    for index, arm in enumerate(shown):
        spent = arm.cost[what].mean
        axes.errorbar(
            spent.value,
            100 * arm.accuracy.value,
            xerr=_bars(spent, least=spent.value * 0.05),
            yerr=_bars(arm.accuracy, scale=100),
            fmt=MARKERS[index % len(MARKERS)],
            color=COLORS[index % len(COLORS)],
            markersize=7,
            elinewidth=1.2,
            capsize=3,
            label=arm.name.replace("$", r"\$"),
        )
    axes.set(xscale="log", xlabel=AXES[what], ylabel="accuracy, %", ylim=(0, 100))
    _plain_ticks(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return figure


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
        f"Accuracy against {AXES[what]}. Bars are confidence intervals.",
        f"Accuracy against {AXES[what]}. {points}",
    )
