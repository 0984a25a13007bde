"""What the study of strategies compares: its arms, and what they have in common."""

from collections.abc import Mapping
from dataclasses import dataclass

WIDTH = 4
"""Drafts of the one parallel round of every PDR arm, except in the sweep of widths."""
KAPPA = 768
"""Tokens of a workspace, except in the sweep of kappa."""
DISTILLERS = ("summary", "top_k", "top_k_per_sample", "random_k", "consensus", "answers")
ORACLES = ("oracle_correct", "oracle_wrong")
SWEEPS: Mapping[str, Mapping[int, str]] = {
    "kappa": {64: "kappa_64", 192: "kappa_192", KAPPA: "pdr"},
    "rounds": {1: "pdr", 2: "rounds_2", 3: "rounds_3"},
    "drafts a round": {2: "width_2", WIDTH: "pdr", 8: "width_8"},
}
"""By what is swept: the arm of each number. `pdr` is part of every sweep."""

PAIRS: Mapping[str, tuple[str, ...]] = {
    "b_seq": (
        "long_cot:pdr_summary",
        "pdr_summary:pdr_oracle_correct",
        "pdr_summary:pdr_oracle_wrong",
        "pdr_summary:pdr_top_k_per_sample",
        "majority:pdr_adaptive",
        "long_cot:pdr_adaptive",
    ),
    "b_total": (
        "majority:pdr_adaptive",
        "majority:pdr_summary",
        "majority:genselect",
        "long_cot:majority",
    ),
}
"""By comparison: the pairs that the paper compares, and those that it leaves open."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms that are measured together, and what they have in common."""

    name: str
    """`b_seq`, `b_total`, or `sweeps`, where calls have the same length and budgets differ."""
    arms: tuple[str, ...]

    @property
    def pairs(self) -> tuple[str, ...]:
        """Return the pairs to compare, reference first; empty compares all with the first arm."""
        measured = {arm.partition("=")[0] for arm in self.arms}
        return tuple(
            pair for pair in PAIRS.get(self.name, ()) if measured.issuperset(pair.split(":"))
        )

    def budget(self, call_tokens: int) -> int:
        """Return the budget that gives `pdr` with its summary calls of this length."""
        sequential, total = 3, WIDTH + 2  # drafts, summary, refinement
        return call_tokens * (sequential if self.name == "b_seq" else total)

    def budget_words(self, call_tokens: int) -> tuple[str, str]:
        """Return the option that decides the length of the calls."""
        if self.name == "sweeps":
            return "--max-tokens", str(call_tokens)
        return f"--{self.name.replace('_', '-')}", str(self.budget(call_tokens))


def comparisons(call_tokens: int, *, quick: bool) -> tuple[Comparison, ...]:
    """Return what is measured on each source.

    Args:
        call_tokens: Length of a call of `pdr`, and in the comparison at B_total of every arm that
            may spend its budget on more calls instead of longer ones.
        quick: Few arms, to check that all works.
    """
    distillers = DISTILLERS[:1] if quick else DISTILLERS + ORACLES
    at_b_seq = (
        "long_cot",
        "sr=sr@widths=1,1",
        *(f"pdr_{each}=pdr@widths={WIDTH};distiller={each}" for each in distillers),
        f"pdr_adaptive=pdr_adaptive@widths={WIDTH},{WIDTH},{WIDTH}",
        f"majority=majority@widths={WIDTH}",
    )
    at_b_total = (
        "long_cot",
        f"sr=sr@max_tokens={call_tokens}",
        f"pdr_summary=pdr@widths={WIDTH}",
        "pdr_adaptive=pdr_adaptive@widths=2,2,2",
        f"majority=majority@max_tokens={call_tokens}",
        f"genselect=genselect@max_tokens={call_tokens}",
    )
    return (
        Comparison("b_seq", at_b_seq),
        Comparison("b_total", at_b_total),
        *(() if quick else (Comparison("sweeps", _swept()),)),
    )


def _swept() -> tuple[str, ...]:
    return (
        f"pdr=pdr@widths={WIDTH}",
        *(f"{name}=pdr@widths={WIDTH};kappa={number}" for number, name in _beside("kappa")),
        *(f"{name}=pdr@widths={_rounds(number)}" for number, name in _beside("rounds")),
        *(f"{name}=pdr@widths={number}" for number, name in _beside("drafts a round")),
    )


def _beside(what: str) -> list[tuple[int, str]]:
    return [(number, name) for number, name in SWEEPS[what].items() if name != "pdr"]


def _rounds(number: int) -> str:
    return ",".join([str(WIDTH)] * number)
