"""Which problems each step asks, and how the K rows of each are spent.

A step needs exactly K rows of every problem. Plan `direct`: K answers by long CoT. `rounds`: as
many runs as fit, each of M drafts, the refinement that reads them, and the distiller's calls if
they are trained on. `workspace`: M drafts, and K − M refinements of one workspace made of them, so
that the refinements' mean reward is a baseline for one prompt.

Problems, plans and seeds are a function of the step's number: nothing is carried from step to step,
so a resumed run gets the same data as without the stop.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.train.trajectory import Role

Kind = Literal["direct", "rounds", "workspace"]


@dataclass(frozen=True, slots=True)
class ProblemPlan:
    """How one problem's rows are spent."""

    kind: Kind
    num_rows: int
    """K, rows of a problem."""
    num_drafts: int = 0
    """M, the drafts in one workspace; 0 for `direct`."""
    num_distills: int = 0
    """Rows of the distiller for one workspace; 0 if it makes no calls, or is not trained on."""

    def __post_init__(self) -> None:
        """Refuse numbers that leave a row with nothing to compare.

        Raises:
            ConfigError: one sentence names the number and what would do.
        """
        rows, drafts = self.num_rows, self.num_drafts
        if rows < 2:
            raise ConfigError(f"{rows} rows of a problem have nothing to compare; use 2 or more")
        if self.kind == "direct":
            if drafts:
                raise ConfigError(f"plan 'direct' makes no drafts, and num_drafts is {drafts}")
            if self.num_distills:
                raise ConfigError(
                    f"plan 'direct' distils nothing, and num_distills is {self.num_distills}"
                )
            return
        if drafts < 1:
            raise ConfigError(f"plan {self.kind!r} needs 1 draft or more, num_drafts is {drafts}")
        if self.num_distills < 0:
            raise ConfigError(f"num_distills {self.num_distills} is below 0; use 0 or more")
        run = self.rows_of_a_run
        if self.kind == "rounds" and (rows % run or rows == run):
            distills = f", {self.num_distills} of the distiller" if self.num_distills else ""
            raise ConfigError(
                f"plan 'rounds' spends {run} rows on each run ({drafts} drafts{distills} and a "
                f"refinement), and {rows} is not that times 2 or more; use {2 * run}"
            )
        if self.kind == "workspace" and self.num_distills:
            raise ConfigError(
                "plan 'workspace' distils once for each problem, which leaves the distiller's call "
                "nothing to be compared with; use plan 'rounds' to train it"
            )
        if self.kind == "workspace" and rows - drafts < 2:
            raise ConfigError(
                f"plan 'workspace' leaves {rows - drafts} of {rows} rows to refinements after "
                f"{drafts} drafts, which have nothing to compare; use {drafts + 2} rows or more"
            )

    @property
    def rows_of_a_run(self) -> int:
        """Return how many rows one run of the graph has."""
        match self.kind:
            case "direct":
                return 1
            case "rounds":
                return self.num_drafts + self.num_distills + 1
            case "workspace":
                return self.num_rows

    @property
    def num_runs(self) -> int:
        """Return the number of runs of the graph."""
        return self.num_rows // self.rows_of_a_run

    @property
    def num_workspaces(self) -> int:
        """Return the number of workspaces."""
        return 0 if self.kind == "direct" else self.num_runs

    @property
    def rows(self) -> Mapping[Role, int]:
        """Return how many rows each role has if no call fails."""
        if self.kind == "direct":
            return {"direct": self.num_rows}
        drafts = self.num_workspaces * self.num_drafts
        distills = self.num_workspaces * self.num_distills
        found: dict[Role, int] = {"draft": drafts, "refine": self.num_rows - drafts - distills}
        return found | {"distill": distills} if distills else found


def config_of_run(config: PDRConfig, plan: ProblemPlan, seed: int) -> PDRConfig:
    """Return the config of one run of a plan."""
    match plan.kind:
        case "direct":
            own: dict[str, object] = {"preset": "long_cot", "widths": (), "finish": "refine"}
        case "rounds":
            own = {"preset": "pdr", "widths": (plan.num_drafts,), "finish": "refine"}
        case "workspace":
            widths = (plan.num_drafts, plan.num_rows - plan.num_drafts)
            own = {"preset": "pdr", "widths": widths, "finish": "vote"}
    return config.model_copy(update={**own, "seed": seed})


SEED_BITS = 31

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The data of every step of a run."""

    num_problems: int
    """Of the data."""
    problems_per_step: int
    """Over all ranks."""
    direct: ProblemPlan
    """How a problem that runs long CoT spends its rows."""
    operator: ProblemPlan
    """How a problem that runs PDR spends its rows."""
    operator_fraction: float = 0.5
    """Share of a step's problems that run PDR."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that no step can be made of.

        Raises:
            ConfigError: one sentence names the number and what would do.
        """
        if not 1 <= self.problems_per_step <= self.num_problems:
            raise ConfigError(
                f"a step of {self.problems_per_step} problems cannot be made of "
                f"{self.num_problems}; give more problems, or fewer to a step"
            )

    @property
    def num_rows(self) -> int:
        """K, rows of a problem."""
        return self.direct.num_rows

    def problems(self, step: int) -> list[int]:
        """Return the positions of a step's problems.

        Each pass over the problems has its own order. Problems at the end of a pass that do not
        fill a step are skipped, so that no step asks a problem twice.
        """
        per_pass = self.num_problems // self.problems_per_step
        number, place = divmod(step, per_pass)
        order = list(range(self.num_problems))
        self._rng("order", number).shuffle(order)
        start = place * self.problems_per_step
        return order[start : start + self.problems_per_step]

    def plans(self, step: int) -> list[ProblemPlan]:
        """Return the plan of each of a step's problems.

        The number of operator plans is exact, rounded half up; which problems get them is random.
        """
        num_operator = int(self.operator_fraction * self.problems_per_step + 0.5)
        plans = [self.operator] * num_operator
        plans += [self.direct] * (self.problems_per_step - num_operator)
        # A generator of its own, so that runs begun by an older version keep their plans.
        random.Random(self._rng("plans", step).getrandbits(SEED_BITS)).shuffle(plans)
        return plans

    def rollout_seed(self, step: int, rank: int) -> int:
        """Return the seed of a rank's rollouts in a step."""
        return self._rng("rollouts", step, rank).getrandbits(SEED_BITS)

    def shuffled(self, rows: int, step: int, rank: int) -> list[int]:
        """Return the order in which a rank's rows of a step are dealt to its updates."""
        order = list(range(rows))
        self._rng("rows", step, rank).shuffle(order)
        return order

    def _rng(self, *what: object) -> random.Random:
        # A text is hashed the same in every process and version of Python.
        return random.Random(":".join(map(str, (self.seed, *what))))


def share_of(items: Sequence[Item], rank: int, num_ranks: int) -> Sequence[Item]:
    """Return a rank's part of a step's problems; every rank has as many."""
    each = len(items) // num_ranks
    return items[rank * each : (rank + 1) * each]
