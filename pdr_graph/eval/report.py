"""A comparison as tables of text: one content for the terminal, Markdown and the page.

A comparison as Markdown, to be pasted into a report.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pdr_graph.eval.comparison import Comparison, Contrast
from pdr_graph.eval.decomposition import CORRECT, Outcome
from pdr_graph.eval.stats import Estimate, Interval
from pdr_graph.eval.summary import ArmSummary, Spread

NONE = "–"
"""What stands where there is no value."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table; the first column names the row, the others are figures."""

    title: str
    note: str
    """How to read it, in a sentence or two."""
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def sheets(comparison: Comparison) -> list[Sheet]:
    """Return the tables that have rows, in reading order."""
    every = [
        _accuracy(comparison),
        _cost(comparison),
        _contrasts(comparison),
        _outcomes(comparison),
        _matched(comparison),
        _anchoring(comparison),
    ]
    return [sheet for sheet in every if sheet.rows]


def _accuracy(comparison: Comparison) -> Sheet:
    ks = comparison.ks
    return Sheet(
        "Accuracy",
        f"Means over problems with {_level(comparison)} t intervals over problems. pass@k is "
        "unbiased; maj@k breaks ties by lot, and samples without an answer do not vote.",
        (
            "arm",
            "problems",
            "samples",
            "accuracy",
            *(f"pass@{k}" for k in ks if k > 1),
            *(f"maj@{k}" for k in ks if k > 1),
            "no answer",
            "cut",
            "failed",
        ),
        [
            (
                arm.name,
                f"{arm.num_problems:,}",
                f"{arm.num_samples:,}",
                _share(arm.accuracy),
                *(_share(arm.pass_at[k]) for k in ks if k > 1),
                *(_share(arm.maj_at.get(k)) for k in ks if k > 1),
                percent(arm.no_answer_rate),
                percent(arm.truncation_rate),
                percent(arm.failure_rate),
            )
            for arm in comparison.arms
        ],
    )


def _cost(comparison: Comparison) -> Sheet:
    return Sheet(
        "Cost",
        "Tokens and seconds a sample: mean over problems, then the 95th percentile over samples. "
        "Nominal counts the completion tokens that the calls were allotted.",
        (
            "arm",
            "B_seq",
            "B_seq p95",
            "B_seq nominal",
            "B_total",
            "B_total p95",
            "B_total nominal",
            "seconds",
            "seconds p95",
        ),
        [
            (
                arm.name,
                *_spend(arm, "b_seq"),
                *_spend(arm, "b_total"),
                *_seconds(arm.cost.get("seconds")),
            )
            for arm in comparison.arms
        ],
    )


def _contrasts(comparison: Comparison) -> Sheet:
    return Sheet(
        "Differences",
        "An arm minus the reference in points of accuracy, paired by problem: t interval, "
        "bootstrap (BCa), sign-flip p, and p corrected by Holm. Then what the arm spends for each "
        "token of the reference.",
        ("arm", "against", "problems", "points", "bootstrap", "p", "p Holm", "B_total", "B_seq"),
        [
            (
                each.arm,
                each.reference,
                f"{each.num_problems:,}",
                _points(each.accuracy.estimate),
                _points_of(each.accuracy.bootstrap),
                _p(each.accuracy.p_value),
                _p(each.p_holm),
                _ratio(each, "b_total"),
                _ratio(each, "b_seq"),
            )
            for each in comparison.contrasts
        ],
    )


def _outcomes(comparison: Comparison) -> Sheet:
    seen = [
        outcome
        for outcome in Outcome
        if any(each.counts[outcome] for each in comparison.decompositions)
    ]
    return Sheet(
        "Where it is won and lost",
        "Every sample in one row; the columns sum to 100 %. A loss is placed after the last stage "
        "that held a correct answer.",
        ("outcome", *(each.arm for each in comparison.decompositions)),
        [
            (
                ("✓ " if outcome in CORRECT else "✗ ") + outcome.value,
                *(
                    percent(each.counts[outcome] / each.num_samples)
                    for each in comparison.decompositions
                ),
            )
            for outcome in seen
        ],
    )


def _matched(comparison: Comparison) -> Sheet:
    return Sheet(
        "Beside a vote of as many tokens",
        "What a vote of the arm's own first drafts attains for its B_total, and best-of-N with a "
        "verifier that is never wrong. Short: problems that have fewer drafts than the budget "
        "buys.",
        ("arm", "drafts", "short", "accuracy", "vote", "best of N", "arm − vote"),
        [
            (
                each.arm,
                f"{each.num_drafts:.1f}",
                f"{each.num_short} of {each.num_problems}",
                _share(each.accuracy),
                _share(each.vote),
                _share(each.best),
                _points(each.over_vote.estimate),
            )
            for each in comparison.matched
        ],
    )


def _anchoring(comparison: Comparison) -> Sheet:
    return Sheet(
        "Anchoring",
        "Accuracy of the final call by the drafts that its workspace admitted; copied: wrong "
        "answers that are an admitted draft's.",
        ("arm", "distiller", "admitted", "samples", "accuracy", "copied"),
        [
            (
                each.arm,
                each.distiller,
                each.admitted.value,
                f"{each.num_samples:,}",
                _share(each.accuracy),
                f"{each.num_copied} of {each.num_wrong}" if each.num_wrong else NONE,
            )
            for each in comparison.anchoring
        ],
    )


def percent(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.1f}%"


def _level(comparison: Comparison) -> str:
    return f"{100 * comparison.request.confidence:g} %"


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    between = estimate.interval
    return percent(estimate.value) + (
        f" [{100 * between.low:.1f}, {100 * between.high:.1f}]" if between else ""
    )


def _points(estimate: Estimate) -> str:
    between = estimate.interval
    return f"{100 * estimate.value:+.1f}" + (f" {_points_of(between)}" if between else "")


def _points_of(interval: Interval | None) -> str:
    return f"[{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]" if interval else NONE


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _ratio(contrast: Contrast, what: str) -> str:
    ratio = contrast.ratios.get(what)
    if ratio is None:
        return NONE
    between = f" [{ratio.interval.low:.2f}, {ratio.interval.high:.2f}]" if ratio.interval else ""
    return f"×{ratio.value:.2f}{between}"


def _spend(arm: ArmSummary, what: str) -> Sequence[str]:
    spent, nominal = arm.cost.get(what), arm.cost.get(f"{what}_nominal")
    if spent is None or nominal is None:
        return NONE, NONE, NONE
    about = "~" if arm.estimated else ""
    return (
        f"{about}{spent.mean.value:,.0f}",
        f"{about}{spent.p95:,.0f}",
        f"{nominal.mean.value:,.0f}",
    )


def _seconds(spread: Spread | None) -> Sequence[str]:
    return (f"{spread.mean.value:,.1f}", f"{spread.p95:,.1f}") if spread else (NONE, NONE)


def to_markdown(comparison: Comparison) -> str:
    """Return all tables and caveats."""
    parts = [line for sheet in sheets(comparison) for line in _section(sheet)]
    if comparison.caveats:
        parts += ["### Before you believe it", "", *(f"- {_cell(c)}" for c in comparison.caveats)]
    return "\n".join(parts).rstrip() + "\n"


def _section(sheet: Sheet) -> Iterator[str]:
    yield from (f"### {sheet.title}", "", sheet.note, "")
    yield _row(sheet.columns)
    yield _row(["---", *["---:"] * (len(sheet.columns) - 1)])
    yield from map(_row, sheet.rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    # An arm's name is a user's own: it must not break out of its cell.
    return " ".join(re.sub(r"([\\|`<>])", r"\\\1", text).split())
