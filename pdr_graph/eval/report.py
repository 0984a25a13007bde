"""A comparison as tables of text, for the terminal, Markdown and the page; and as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pdr_graph.eval.comparison import Comparison, Contrast
from pdr_graph.eval.decomposition import CORRECT, Outcome
from pdr_graph.eval.stats import Estimate, Interval
from pdr_graph.eval.summary import ArmSummary, Spread

NONE = "–"
"""Stands for an absent value."""


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
        _contrasts(comparison),
        _cost(comparison),
        _outcomes(comparison),
        _matched(comparison),
        _anchoring(comparison),
    ]
    return [sheet for sheet in every if sheet.rows]


def _accuracy(comparison: Comparison) -> Sheet:
    ks = [k for k in comparison.ks if k > 1]
    columns = [
        *("arm", "problems", "samples", "accuracy"),
        *(f"pass@{k}" for k in ks),
        *(f"maj@{k}" for k in ks),
        *("no answer", "cut", "failed"),
    ]
    rows = [
        (
            arm.name,
            f"{arm.num_problems:,}",
            f"{arm.num_samples:,}",
            _share(arm.accuracy),
            *(_share(arm.pass_at_k[k]) for k in ks),
            *(_share(arm.maj_at_k.get(k)) for k in ks),
            percent(arm.no_answer_rate),
            percent(arm.truncation_rate),
            percent(arm.failure_rate),
        )
        for arm in comparison.arms
    ]
    return Sheet(
        "Accuracy",
        f"Means over problems, with t intervals over problems at "
        f"{percent(comparison.request.confidence, 'g')}. pass@k is unbiased. maj@k breaks ties by "
        "lot; samples without an answer do not vote.",
        tuple(columns),
        rows,
    )


def _cost(comparison: Comparison) -> Sheet:
    return Sheet(
        "Cost",
        "Tokens and seconds of a sample: mean over problems, and 95th percentile over samples. "
        "Nominal counts the completion tokens that were allotted to the calls.",
        (
            *("arm", "B_seq", "B_seq p95", "B_seq nominal"),
            *("B_total", "B_total p95", "B_total nominal", "seconds", "seconds p95"),
        ),
        [
            (
                arm.name,
                *_tokens(arm, "b_seq"),
                *_tokens(arm, "b_total"),
                *_seconds(arm.cost.get("seconds")),
            )
            for arm in comparison.arms
        ],
    )


def _contrasts(comparison: Comparison) -> Sheet:
    return Sheet(
        "Differences",
        "Each arm minus its reference, in points of accuracy, paired by problem: t interval, "
        "bootstrap interval (BCa), sign-flip p, and p corrected by Holm. B_total and B_seq: tokens "
        "that the arm spends for each token of the reference.",
        ("arm", "against", "problems", "points", "bootstrap", "p", "p Holm", "B_total", "B_seq"),
        [
            (
                each.arm,
                each.reference,
                f"{each.accuracy.num_problems:,}",
                _points(each.accuracy),
                _interval(each.accuracy.bootstrap),
                _p(each.accuracy.p_value),
                _p(each.p_holm),
                _ratio(each, "b_total"),
                _ratio(each, "b_seq"),
            )
            for each in comparison.contrasts
        ],
    )


def _outcomes(comparison: Comparison) -> Sheet:
    arms = comparison.decompositions
    return Sheet(
        "Where it is won and lost",
        "Every sample is in one row, so each column sums to 100%. A loss stands after the last "
        "stage that held a correct answer.",
        ("outcome", *(each.arm for each in arms)),
        [
            (
                ("✓ " if outcome in CORRECT else "✗ ") + outcome.value,
                *(percent(each.counts[outcome] / each.num_samples) for each in arms),
            )
            for outcome in Outcome
            if any(each.counts[outcome] for each in arms)
        ],
    )


def _matched(comparison: Comparison) -> Sheet:
    return Sheet(
        "Beside a vote of as many tokens",
        "Vote: what a vote of the arm's own first drafts attains for the arm's B_total. Best of N: "
        "the same with a verifier that is never wrong. Short: problems with fewer drafts than the "
        "budget pays for.",
        ("arm", "drafts", "short", "accuracy", "vote", "best of N", "arm − vote"),
        [
            (
                each.arm,
                f"{each.num_drafts:.1f}",
                f"{each.num_short} of {each.num_problems}",
                _share(each.accuracy),
                _share(each.vote),
                _share(each.best),
                _points(each.over_vote),
            )
            for each in comparison.matched
        ],
    )


def _anchoring(comparison: Comparison) -> Sheet:
    return Sheet(
        "Anchoring",
        "Accuracy of the final call, by which drafts its workspace admitted. Copied: wrong answers "
        "that an admitted draft gave.",
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


def percent(share: float, precision: str = ".1f") -> str:
    """Write a share in percent."""
    return f"{100 * share:{precision}}%"


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return NONE
    between = estimate.interval
    ends = f" [{100 * between.low:.1f}, {100 * between.high:.1f}]" if between else ""
    return percent(estimate.value) + ends


def _points(estimate: Estimate) -> str:
    ends = f" {_interval(estimate.interval)}" if estimate.interval else ""
    return f"{100 * estimate.value:+.1f}{ends}"


def _interval(points: Interval | None) -> str:
    return f"[{100 * points.low:+.1f}, {100 * points.high:+.1f}]" if points else NONE


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _ratio(contrast: Contrast, what: str) -> str:
    ratio = contrast.ratios.get(what)
    if ratio is None:
        return NONE
    between = ratio.bootstrap
    return f"×{ratio.value:.2f}" + (f" [{between.low:.2f}, {between.high:.2f}]" if between else "")


def _tokens(arm: ArmSummary, what: str) -> Sequence[str]:
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
    """Return all tables and caveats as Markdown."""
    lines: list[str] = []
    for sheet in sheets(comparison):
        ruler = ["---", *["---:"] * (len(sheet.columns) - 1)]
        lines += [f"### {sheet.title}", "", sheet.note, ""]
        lines += [_row(sheet.columns), _row(ruler), *map(_row, sheet.rows), ""]
    if comparison.caveats:
        lines += ["### Before you believe it", "", *(f"- {_cell(c)}" for c in comparison.caveats)]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    # An arm may have any name; it must not break out of its cell.
    return " ".join(re.sub(r"([\\|`<>])", r"\\\1", text).split())
