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

ABLATIONS = (
    Arm("rl_half", "no problem as a PDR round (ordinary RL)", half_of="rl"),
    Arm("operator_half", "half of the problems as PDR rounds (operator RL)", half_of="operator"),
    Arm("all_operator", "all problems as PDR rounds", {"rollouts.operator_fraction": "1.0"}),
    Arm("alpha_0", "α = 0", {"objective.alpha": "0.0"}),
    Arm("credit_none", "drafts without credit", {"objective.draft_credit": '"none"'}),
    Arm("rounds_own", "whole rounds, drafts by their own answer", _ROUNDS),
    Arm(
        "rounds_outcome",
        "whole rounds, drafts by the outcome",
        {**_ROUNDS, "objective.draft_credit": '"outcome"'},
    ),
)
"""Variants of `operator` at half of its steps, after the two that they are held against. Credit by
the outcome needs several workspaces of a problem: its reference is whole rounds, own credit."""

TITLES: Mapping[str, str] = {
    WARM: "SFT (warm start)",
    **{arm.name: arm.title for arm in (*MAIN, *ABLATIONS)},
}
