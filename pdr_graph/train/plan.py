"""How the K rows of a problem are spent: on long CoT, or on calls of one PDR round.

A trainer wants exactly K rows of every problem. `direct`: K answers. `rounds`: as many runs as fit,
each of M drafts and the refinement that reads them. `workspace`: M drafts, and K − M refinements
of the one workspace made of them, so that their mean is a baseline for one prompt.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pdr_graph.errors import ConfigError
from pdr_graph.train.trajectory import Role

Kind = Literal["direct", "rounds", "workspace"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How one problem's rows are spent."""

    kind: Kind
    num_rows: int
    """K, rows of a problem."""
    num_drafts: int = 0
    """M, drafts that a workspace is made of; 0 for `direct`."""

    def __post_init__(self) -> None:
        """Refuse numbers that leave a group without a comparison.

        Raises:
            ConfigError: one sentence names the number and what would do.
        """
        rows, drafts = self.num_rows, self.num_drafts
        if rows < 2:
            raise ConfigError(f"{rows} rows of a problem have nothing to compare; use 2 or more")
        if self.kind == "direct":
            if drafts:
                raise ConfigError(f"plan 'direct' makes no drafts, and num_drafts is {drafts}")
            return
        if drafts < 1:
            raise ConfigError(f"plan {self.kind!r} needs 1 draft or more, num_drafts is {drafts}")
        if self.kind == "rounds" and (rows % (drafts + 1) or rows == drafts + 1):
            raise ConfigError(
                f"plan 'rounds' spends {drafts + 1} rows on each run ({drafts} drafts and a "
                f"refinement), and {rows} is not that times 2 or more; use {2 * (drafts + 1)}"
            )
        if self.kind == "workspace" and rows - drafts < 2:
            raise ConfigError(
                f"plan 'workspace' leaves {rows - drafts} of {rows} rows to refinements after "
                f"{drafts} drafts, which have nothing to compare; use {drafts + 2} rows or more"
            )

    @property
    def num_workspaces(self) -> int:
        """Return how many workspaces the rows make."""
        if self.kind == "rounds":
            return self.num_rows // (self.num_drafts + 1)
        return int(self.kind == "workspace")

    @property
    def rows(self) -> Mapping[Role, int]:
        """Return how many rows each role has."""
        if self.kind == "direct":
            return {"direct": self.num_rows}
        drafts = self.num_workspaces * self.num_drafts
        return {"draft": drafts, "refine": self.num_rows - drafts}


def mixed(
    direct: Plan, operator: Plan, num_problems: int, fraction: float, seed: int
) -> list[Plan]:
    """Return the plan of each problem of a batch: half and half in the paper (`fraction` 0.5).

    The share of operator plans is exact up to one problem, rounded half up; which problems have
    them is drawn.

    Raises:
        ConfigError: `fraction` is not in [0, 1], or the plans differ in their rows.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ConfigError(f"operator fraction {fraction:g} is not between 0 and 1")
    if direct.num_rows != operator.num_rows:
        raise ConfigError(
            f"plan {direct.kind!r} has {direct.num_rows} rows and plan {operator.kind!r} "
            f"{operator.num_rows}; a batch needs one number for all problems"
        )
    num_operator = int(fraction * num_problems + 0.5)
    plans = [operator] * num_operator + [direct] * (num_problems - num_operator)
    random.Random(seed).shuffle(plans)
    return plans
