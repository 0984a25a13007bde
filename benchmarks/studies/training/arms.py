"""The arms: what each is trained by, and where it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train, at the same rows, sampled tokens and updates as the others."""

    name: str
    title: str
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Fields of `rl.toml` that are its own."""
    after: str | None = None
    """Arm whose first half it goes on from, for the second half; None starts at the warm start."""
    half_of: str | None = None
    """Arm whose first half is this one, so that it needs no training."""
    against: str | None = None
    """Arm that it is held against, where it is a variant."""


WARM = "warm"
"""Name of the warm start where arms are compared."""

_ORDINARY = MappingProxyType({"rollouts.operator_fraction": "0.0"})
_ROUNDS = MappingProxyType({"rollouts.operator_plan": '"rounds"'})

MAIN = (
    Arm("rl", "ordinary RL", _ORDINARY),
    Arm("operator", "operator RL from SFT"),
    Arm("continued", "ordinary RL, then operator RL", after="rl"),
)
"""The arms of the planned contrasts."""

_AS_PLANNED = "operator_half"

ABLATIONS = (
    Arm(_AS_PLANNED, "half of the problems as PDR rounds (operator RL)", half_of="operator"),
    Arm("rl_half", "none as PDR rounds (ordinary RL)", half_of="rl", against=_AS_PLANNED),
    Arm(
        "all_operator",
        "all problems as PDR rounds",
        {"rollouts.operator_fraction": "1.0"},
        against=_AS_PLANNED,
    ),
    Arm("alpha_0", "α = 0", {"objective.alpha": "0.0"}, against=_AS_PLANNED),
    Arm(
        "credit_none",
        "drafts without credit",
        {"objective.draft_credit": '"none"'},
        against=_AS_PLANNED,
    ),
    Arm("rounds_own", "whole rounds, drafts by their own answer", _ROUNDS, against=_AS_PLANNED),
    Arm(
        "rounds_outcome",
        "whole rounds, drafts by the outcome",
        {**_ROUNDS, "objective.draft_credit": '"outcome"'},
        against="rounds_own",
    ),
)
"""Variants of `operator` at half of its steps. Credit by the outcome needs several workspaces of a
problem, so it is held against whole rounds with the drafts' own credit."""

TITLES: Mapping[str, str] = {
    WARM: "SFT (warm start)",
    **{arm.name: arm.title for arm in (*MAIN, *ABLATIONS)},
}
