"""Tables and plots of the study of selection, and what its rule says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.studies.selection.policies import WHOLE, Outcome, RoundsPolicy, long_cot, oracle
from benchmarks.studies.selection.pool import PooledProblem
from pdr_graph.answers import AnswerKind, one_vote
from pdr_graph.eval.stats import (
    Estimate,
    Floats,
    IntervalOptions,
    PairedDifference,
    paired_difference,
    share_by_problem,
    token_ratio,
)

WIDTH = 8
"""Drafts of the vote that the preset is compared with, and the most that the preset asks for."""
WIDTHS, STOP = (3, 2, 3), 0.75
"""The recommended preset, with as many drafts at most as that vote. A policy that says nothing else
breaks ties by a draft's last tokens, as the preset did when the rule was written."""
NOW = "vote_first, ties by all tokens"
"""The preset as it is since `chain_sum` was judged, which chose its tie rule."""
CHOSE_TIES = "chain_sum"
LEAST_POINTS = -0.02
"""Lower bound of the difference that counts as "not worse"."""
LEAST_GAP = 0.25
"""Share of the gap between vote and oracle that is to be closed."""
LEAST_RATIO = 1.4
"""Tokens of the vote for each token of the preset."""
OPTIONS = IntervalOptions(seed=18)


@dataclass(frozen=True, slots=True)
class Measured:
    """One policy on the problems of one source, or of all."""

    name: str
    correct_P: Floats
    b_total_P: Floats
    b_seq_P: Floats
    drafts_P: Floats

    @classmethod
    def of(cls, name: str, outcomes: Sequence[Outcome]) -> "Measured":
        """Gather the outcomes of a policy."""
        return cls(
            name,
            np.array([each.correct for each in outcomes], dtype=np.float64),
            np.array([each.b_total for each in outcomes], dtype=np.float64),
            np.array([each.b_seq for each in outcomes], dtype=np.float64),
            np.array([each.num_drafts for each in outcomes], dtype=np.float64),
        )

    @property
    def accuracy(self) -> Estimate:
        """Share of right answers over problems."""
        return share_by_problem(self.correct_P, OPTIONS.confidence)

    def minus(self, reference: "Measured") -> PairedDifference:
        """Return the difference in accuracy from another policy on the same problems."""
        return paired_difference(reference.correct_P, self.correct_P, OPTIONS)


def joined(each: Sequence[Measured]) -> Measured:
    """Return one policy on the problems of several sources."""
    return Measured(
        each[0].name,
        *(
            np.concatenate([getattr(one, field) for one in each])
            for field in ("correct_P", "b_total_P", "b_seq_P", "drafts_P")
        ),
    )


@dataclass(frozen=True, slots=True)
class SourceResult:
    """All policies on one source, or on all."""

    name: str
    policies: Mapping[str, Measured]
    preset: Measured
    """The recommended preset: with a judge where one is better than the vote, else without."""

    @property
    def num_problems(self) -> int:
        """Problems that all policies were tried on."""
        return self.policies["vote"].correct_P.size


def together_of(name: str, results: Sequence[SourceResult]) -> SourceResult:
    """Return the policies that all these sources have, on the problems of all of them."""
    names = [each for each in results[0].policies if all(each in r.policies for r in results)]
    return SourceResult(
        name,
        {each: joined([result.policies[each] for result in results]) for each in names},
        joined([result.preset for result in results]),
    )


async def measure(name: str, problems: Sequence[PooledProblem], kind: AnswerKind) -> SourceResult:
    """Try every policy on the problems of a source; those of a judge where it has weighed drafts.

    Args:
        name: Of the source.
        problems: Each with `WIDTH` drafts.
        kind: Of their answers.
    """
    judged = any(each.weight is not None for problem in problems for each in problem.drafts)
    policies = {
        "vote": RoundsPolicy((WIDTH,), tie_signal=None),
        "vote, ties by likelihood": RoundsPolicy((WIDTH,)),
        "vote, ties by all tokens": RoundsPolicy((WIDTH,), tie_signal=WHOLE),
        "vote_first": RoundsPolicy(WIDTHS, STOP),
        NOW: RoundsPolicy(WIDTHS, STOP, tie_signal=WHOLE),
    }
    if judged:
        policies["judged vote"] = RoundsPolicy((WIDTH,), judged=True)
        policies["vote_first, judged"] = RoundsPolicy(WIDTHS, STOP, judged=True)
    measured: dict[str, Measured] = {}
    with one_vote():
        for label, policy in policies.items():
            measured[label] = Measured.of(label, [await policy.at(p, kind) for p in problems])
        preset = measured["vote_first, judged" if judged else "vote_first"]
        for width in range(1, WIDTH + 1):
            outcomes = [await RoundsPolicy((width,), tie_signal=None).at(p, kind) for p in problems]
            matched = Measured.of("vote, matched", outcomes)
            if matched.b_total_P.mean() >= preset.b_total_P.mean():
                break
        measured["vote, matched"] = matched
    measured["long_cot"] = Measured.of("long_cot", [long_cot(p) for p in problems])
    vote = measured["vote"]
    right = np.array([oracle(p) for p in problems])
    measured["oracle"] = Measured("oracle", right, vote.b_total_P, vote.b_seq_P, vote.drafts_P)
    return SourceResult(name, measured, preset)


# -------------------------------------------------------------------------------------- rule


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the rule, applied."""

    rule: str
    """a, b, c or d."""
    where: str
    """A source, or `all`."""
    met: bool
    figure: str


def findings(results: Sequence[SourceResult]) -> list[Finding]:
    """Apply the rule of `docs/results/selection-plan.md`."""
    everywhere = together_of("all", results)
    found = []
    for each in (*results, everywhere):
        policies, together = each.policies, each is everywhere
        against = each.preset.minus(policies["vote, matched"])
        least = 0.0 if together else LEAST_POINTS
        found.append(Finding("a", each.name, _above(against, least), points(against)))
        if not together:
            alone = each.preset.minus(policies["long_cot"])
            found.append(Finding("b", each.name, _above(alone, 0.0), points(alone)))
        gap, low = _gap(each.preset, policies["vote"], policies["oracle"])
        found.append(Finding("c", each.name, gap >= LEAST_GAP, f"{gap:+.0%} of {low:.1f} points"))
        if not together:
            vote, first = policies["vote"], policies["vote_first"]
            ratio = vote.b_total_P.mean() / first.b_total_P.mean()
            equal = first.minus(vote)
            met = ratio >= LEAST_RATIO and _above(equal, LEAST_POINTS)
            found.append(
                Finding("d", each.name, bool(met), f"{ratio:.2f} × fewer, {points(equal)}")
            )
    return sorted(found, key=lambda each: each.rule)


def _above(difference: PairedDifference, least: float) -> bool:
    return difference.low is not None and difference.low > least


def _gap(policy: Measured, vote: Measured, best: Measured) -> tuple[float, float]:
    """Return the share of the gap between vote and oracle that is closed, and the gap in points."""
    gap = float(best.correct_P.mean() - vote.correct_P.mean())
    gained = float(policy.correct_P.mean() - vote.correct_P.mean())
    return (gained / gap if gap else 0.0), 100 * gap


# ------------------------------------------------------------------------------------- tables


def points(difference: PairedDifference) -> str:
    """Return a difference in points with its interval."""
    low, high = difference.low or 0.0, difference.high or 0.0
    return f"{100 * difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def tables(results: Sequence[SourceResult]) -> str:
    """Return all tables as Markdown: the policies of each source, the rule, the preset as it is."""
    lines = []
    for each in results:
        vote = each.policies["vote"]
        lines += [
            f"## {each.name}, {each.num_problems} problems",
            "",
            "| policy | right, % [95 %] | against the vote of 8 | drafts | B_total | B_seq | "
            "tokens of the vote for each |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, policy in each.policies.items():
            ratio = token_ratio(policy.b_total_P, vote.b_total_P, OPTIONS)
            lines.append(
                f"| {name} | {_percent(policy.accuracy)} | "
                f"{'–' if name == 'vote' else points(policy.minus(vote))} | "
                f"{policy.drafts_P.mean():.1f} | {policy.b_total_P.mean():,.0f} | "
                f"{policy.b_seq_P.mean():,.0f} | {ratio.value if ratio else 0:.2f} |"
            )
        lines.append("")
    lines += ["## The rule", "", "| | where | figure | met |", "|---|---|---|---|"]
    lines += [
        f"| {each.rule} | {each.where} | {each.figure} | {'yes' if each.met else 'no'} |"
        for each in findings(results)
    ]
    return "\n".join([*lines, "", *_preset_now(results)]) + "\n"


def _preset_now(results: Sequence[SourceResult]) -> list[str]:
    """Return the table of the preset with the tie rule that it has now."""
    others = [each for each in results if each.name != CHOSE_TIES]
    pooled = [together_of("all", results)] if len(results) > 1 else []
    if 1 < len(others) < len(results):
        pooled.insert(0, together_of(f"all but {CHOSE_TIES}", others))
    lines = [
        "## The preset as it is",
        "",
        f'| {NOW} | problems | against the vote of 8 | against "vote, matched" |',
        "|---|---|---|---|",
    ]
    for each in (*results, *pooled):
        against = (each.policies[NOW].minus(each.policies[n]) for n in ("vote", "vote, matched"))
        shown = " | ".join(map(points, against))
        lines.append(f"| {each.name} | {each.num_problems:,} | {shown} |")
    return lines


def _percent(share: Estimate) -> str:
    low, high = share.low or 0.0, share.high or 0.0
    return f"{100 * share.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


COLORS = ("#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#777777", "#000000")
"""Okabe and Ito's colours, which colour-blind readers can tell apart."""


def draw(results: Sequence[SourceResult], file: Path) -> None:
    """Write accuracy with its interval by the tokens of all calls, a panel for each source.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(3.6 * len(results), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(results)))
    for axes, each in zip(panels, results, strict=True):
        for color, (name, policy) in zip(COLORS, each.policies.items(), strict=False):
            share = policy.accuracy
            low, high = share.low or share.value, share.high or share.value
            axes.errorbar(
                policy.b_total_P.mean(), 100 * share.value, color=color, label=name, capsize=3,
                yerr=[[100 * (share.value - low)], [100 * (high - share.value)]], fmt="o",
            )  # fmt: skip
        axes.set(title=f"{each.name} ({each.num_problems})", xlabel="B_total, tokens")
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4,
                  frameon=False, fontsize=8)  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
