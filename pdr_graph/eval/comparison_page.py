"""A comparison as one self-contained page: caveats, plots, tables."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO

from matplotlib import rc_context

from pdr_graph.eval.comparison import Comparison
from pdr_graph.eval.plots import TITLES, plot
from pdr_graph.eval.sheets import percent, sheets
from pdr_graph.page import render


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture of the page."""

    source: str
    """A `data:` URL; as an image, an SVG runs no script, whatever an arm is called."""
    caption: str
    text: str
    """For those who do not see it."""


def comparison_page(comparison: Comparison) -> str:
    """Return the page of a comparison."""
    return render(
        "comparison",
        comparison=comparison,
        sheets=sheets(comparison),
        plots=[_plot(comparison, what) for what in TITLES],
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
        f"Accuracy against {TITLES[what]}; bars are confidence intervals.",
        f"Accuracy against {TITLES[what]}. {points}",
    )
