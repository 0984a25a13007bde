"""The planned contrasts, fixed before the runs in `docs/results/training-plan.md`."""

from dataclasses import dataclass

from benchmarks.studies.training.arms import WARM

Side = tuple[str, str]
"""Arm and strategy."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One model under one strategy against another."""

    reference: Side
    other: Side
    question: str


PRIMARY = Contrast(
    ("rl", "pdr_1"), ("operator", "pdr_1"), "operator RL against ordinary RL, used by PDR"
)
SECONDARY = (
    Contrast(("rl", "pdr_1"), ("continued", "pdr_1"), "the same, continued from ordinary RL"),
    Contrast(("rl", "pdr_2"), ("operator", "pdr_2"), "PDR with 2 rounds, training had 1"),
    Contrast(("rl", "sr"), ("operator", "sr"), "sequential refinement, which neither trained for"),
    Contrast(("rl", "long_cot"), ("operator", "long_cot"), "what it costs long CoT"),
    Contrast((WARM, "pdr_1"), ("rl", "pdr_1"), "ordinary RL against the warm start, by PDR"),
    Contrast((WARM, "long_cot"), ("rl", "long_cot"), "ordinary RL against it, by long CoT"),
    Contrast(("operator", "majority"), ("operator", "pdr_1"), "PDR against a vote of its drafts"),
)
"""Their p-values share one error rate by Holm's procedure; the primary contrast stands alone."""
EFFECT = 0.02
"""Least difference in accuracy that counts as an effect, if its p is below `LEVEL` as well."""
LEVEL = 0.05
"""Of a p-value, corrected where there are several."""
