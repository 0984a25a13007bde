"""Which problems each step asks, by which plans and seeds: a function of the step's number.

Nothing of it is kept from step to step, so a run that is resumed goes on with the data that it
would have had, and so does one that is given more steps.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pdr_graph.errors import ConfigError
from pdr_graph.train.plan import Plan, mixed

SEED_BITS = 31

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The data of every step of a run."""

    num_problems: int
    """Problems that there are."""
    problems_per_step: int
    """Over all ranks."""
    direct: Plan
    """How a problem of trace mode spends its rows."""
    operator: Plan
    """How a problem of operator mode does."""
    operator_fraction: float = 0.5
    """Share of a step's problems in operator mode."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no step could be made of.

        Raises:
            ConfigError: one sentence names the number and what would do.
        """
        if not 1 <= self.problems_per_step <= self.num_problems:
            raise ConfigError(
                f"a step of {self.problems_per_step} problems cannot be made of "
                f"{self.num_problems}; give more problems, or fewer to a step"
            )
        self.plans(0)

    @property
    def num_rows(self) -> int:
        """K, rows of a problem."""
        return self.direct.num_rows

    def problems(self, step: int) -> list[int]:
        """Return the positions of a step's problems.

        Each pass over the problems has an order of its own; what is left of one that does not
        fill a step is left out, so that no step asks a problem twice.
        """
        per_pass = self.num_problems // self.problems_per_step
        number, place = divmod(step, per_pass)
        order = list(range(self.num_problems))
        self._rng("order", number).shuffle(order)
        start = place * self.problems_per_step
        return order[start : start + self.problems_per_step]

    def plans(self, step: int) -> list[Plan]:
        """Return the plan of each of a step's problems."""
        seed = self._rng("plans", step).getrandbits(SEED_BITS)
        return mixed(
            self.direct, self.operator, self.problems_per_step, self.operator_fraction, seed
        )

    def rollout_seed(self, step: int, rank: int) -> int:
        """Return what a rank's rollouts of a step are drawn with."""
        return self._rng("rollouts", step, rank).getrandbits(SEED_BITS)

    def shuffled(self, rows: int, step: int, rank: int) -> list[int]:
        """Return in which order a rank's rows of a step are dealt to its updates."""
        order = list(range(rows))
        self._rng("rows", step, rank).shuffle(order)
        return order

    def _rng(self, *what: object) -> random.Random:
        # Of text: hashed the same in every process and version of Python.
        return random.Random(":".join(map(str, (self.seed, *what))))


def share_of(items: Sequence[Item], rank: int, num_ranks: int) -> Sequence[Item]:
    """Return a rank's part of a step's problems, which is the same number on every rank.

    Raises:
        ConfigError: they cannot be shared out evenly.
    """
    if len(items) % num_ranks:
        raise ConfigError(
            f"{len(items)} problems of a step cannot be shared out among {num_ranks} processes; "
            f"use a multiple of {num_ranks}"
        )
    each = len(items) // num_ranks
    return items[rank * each : (rank + 1) * each]
