"""Plots of the studies besides those of `pdr-graph compare`: outcomes by arm, and sweeps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.studies.settings import SWEEPS
from pdr_graph.eval.decomposition import CORRECT, Decomposition, Outcome
from pdr_graph.eval.stats import Estimate

COLORS = {
    Outcome.CORRECT_WITH_MAJORITY: "#0072B2",
    Outcome.CORRECT_AGAINST_MAJORITY: "#56B4E9",
    Outcome.CORRECT_WITHOUT_DRAFT: "#009E73",
    Outcome.CORRECT_ALONE: "#0072B2",
    Outcome.NO_CORRECT_DRAFT: "#BBBBBB",
    Outcome.LOST_IN_DISTILLATION: "#E69F00",
    Outcome.LOST_IN_REDRAFTING: "#F0E442",
    Outcome.LOST_IN_REFINEMENT: "#D55E00",
    Outcome.LOST_IN_CHOICE: "#CC79A7",
    Outcome.WRONG_ALONE: "#BBBBBB",
    Outcome.UNJUDGED: "#777777",
    Outcome.FAILED: "#000000",
}
"""Okabe and Ito's colours, which colour-blind readers can tell apart; grey if nothing was lost."""


def draw_outcomes(decompositions: Sequence[Decomposition], file: Path) -> None:
    """Write one bar for each arm, divided by the outcome of its samples, correct ones first.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(8.4, 0.9 + 0.32 * len(decompositions)), layout="constrained")
    axes = figure.subplots()
    arms = [each.arm for each in decompositions]
    left = [0.0] * len(arms)
    for outcome in sorted(Outcome, key=lambda each: each not in CORRECT):
        shares = [100 * each.counts[outcome] / each.num_samples for each in decompositions]
        if any(shares):
            axes.barh(arms, shares, left=left, color=COLORS[outcome], label=outcome.value)
            left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.set(xlim=(0, 100), xlabel="share of samples, %")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    figure.savefig(file, dpi=150)


def draw_sweeps(accuracies: Mapping[str, Estimate], file: Path) -> None:
    """Write accuracy with its interval against each number of each sweep.

    Args:
        accuracies: By arm, those of `SWEEPS`.
        file: To be written.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    panels = figure.subplots(1, len(SWEEPS), sharey=True)
    for axes, (what, names) in zip(panels, SWEEPS.items(), strict=True):
        shown = {number: accuracies[name] for number, name in names.items()}
        values = [100 * each.value for each in shown.values()]
        ends = [each.interval for each in shown.values()]
        bars = [
            [
                value - 100 * end.low if end else 0.0
                for value, end in zip(values, ends, strict=True)
            ],
            [
                100 * end.high - value if end else 0.0
                for value, end in zip(values, ends, strict=True)
            ],
        ]
        axes.errorbar(
            [str(number) for number in shown], values, yerr=bars, fmt="o-", color="#0072B2",
            capsize=3, elinewidth=1.2,
        )  # fmt: skip
        axes.set(xlabel=what, ylim=(0, 100))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy, %")
    figure.savefig(file, dpi=150)
