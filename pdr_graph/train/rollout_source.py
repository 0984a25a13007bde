"""Where the rows of a step come from: weights are pushed, rollouts collected, compared, checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from pdr_graph.errors import ConfigError

try:
    from accelerate import Accelerator
    from accelerate.utils import gather_object
    from torch import nn
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

from pdr_graph.eval.problems import Problem
from pdr_graph.train.advantage import TrainRow, advantages
from pdr_graph.train.batch import Batch, Scores, StepRows, TokenSample, dealt, filled, padded
from pdr_graph.train.drift import Drift, DriftGuard, drift_between, over_ranks
from pdr_graph.train.figures import Figures, StepTally, per_second, tally_of
from pdr_graph.train.plan import ProblemPlan, Schedule, share_of
from pdr_graph.train.push import WeightPush
from pdr_graph.train.ranks import together
from pdr_graph.train.trajectory import Trajectory


class Collected(Protocol):
    """The rollouts of some problems."""

    @property
    def trajectories(self) -> Sequence[Trajectory]:
        """All runs."""

    @property
    def rows(self) -> Sequence[Sequence[TrainRow]]:
        """Of each problem, in the order asked, the calls that are trained on; at most K."""


class Collect(Protocol):
    """Draws the rollouts of some problems, each by its plan."""

    def __call__(
        self,
        problems: Sequence[Problem],
        plans: Sequence[ProblemPlan],
        *,
        seed: int,
        policy_version: int,
    ) -> Collected:
        """Draw them from the policy as it is; the same seed and weights give the same rollouts."""


@dataclass(slots=True)
class RolloutSource:
    """Draws the rows of each step on this rank, together with the other ranks."""

    problems: Sequence[Problem]
    schedule: Schedule
    collect: Collect
    push: WeightPush
    guard: DriftGuard | None
    num_updates: int
    """Updates that a step's rows are dealt to."""
    rows_at_once: int
    pad_id: int
    accelerator: Accelerator
    _pushed: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Refuse problems that are not those of the schedule.

        Raises:
            ConfigError: their number differs.
        """
        if len(self.problems) != self.schedule.num_problems:
            raise ConfigError(
                f"the schedule is of {self.schedule.num_problems} problems and there are "
                f"{len(self.problems)}; make it of as many"
            )

    def draw(
        self, step: int, model: nn.Module, score: Callable[[Batch], Scores]
    ) -> tuple[StepRows, Figures]:
        """Return the rows of a step, and what is to be said of them.

        Args:
            step: Its number, from 0.
            model: The trained model, unwrapped.
            score: The trainer's scores of a batch, without gradient.

        Raises:
            DriftError: the policy is not the model.
            PushError: it did not take the weights.
            RankError: something failed on another rank.
        """
        version = step * self.num_updates
        began = perf_counter()
        self._bring_up(model, version)
        pushed = perf_counter()
        collected = together(lambda: self._collect(step, version, model), self.accelerator)
        seconds = perf_counter() - pushed
        rows = filled(collected.rows, self.schedule.num_rows)
        kept = [row for row in rows if row is not None]
        compared = advantages(kept)
        values = iter(compared.values)
        samples = [
            TokenSample(None) if row is None else TokenSample(row, next(values)) for row in rows
        ]
        figures = self._figures(
            tally_of(collected.trajectories, collected.rows, compared, num_slots=len(rows))
        )
        figures |= per_second(figures, "sampled", seconds)
        figures |= {"seconds/push": pushed - began, "seconds/collect": seconds}
        figures |= self._check(step, samples, version, score)
        order = self.schedule.shuffled(len(samples), step, self.accelerator.process_index)
        batches = dealt(samples, order, self.num_updates, self.rows_at_once)
        prepared = StepRows.of(
            step,
            batches,
            num_updates=self.num_updates,
            pad_id=self.pad_id,
            accelerator=self.accelerator,
        )
        return prepared, {"step": step, "policy_version": version, **figures}

    def _bring_up(self, model: nn.Module, version: int) -> None:
        if self._pushed != version:
            together(lambda: self.push.push(model, version), self.accelerator)
            self._pushed = version

    def _collect(self, step: int, version: int, model: nn.Module) -> Collected:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        problems = [self.problems[index] for index in self.schedule.problems(step)]
        training = model.training
        # A policy in this process is this module.
        model.eval()
        try:
            return self.collect(
                share_of(problems, rank, ranks),
                share_of(self.schedule.plans(step), rank, ranks),
                seed=self.schedule.rollout_seed(step, rank),
                policy_version=version,
            )
        finally:
            model.train(training)

    def _figures(self, tally: StepTally) -> Figures:
        return StepTally.together(gather_object([tally])).figures()

    def _check(
        self,
        step: int,
        samples: Sequence[TokenSample],
        version: int,
        score: Callable[[Batch], Scores],
    ) -> Figures:
        if self.guard is None or not self.guard.is_due(step):
            return {}
        batch = padded(self.guard.chosen(samples, version), pad_id=self.pad_id)
        batch = batch.to(self.accelerator.device)
        here = drift_between(score(batch).logprobs_B_T, batch.behaviour_B_T, batch.mask_B_T)
        # Together, so that all ranks stop where one has to.
        drifts: list[Drift] = gather_object([here])
        drift = over_ranks(drifts)
        guard, cause = self.guard, self.push.cause
        together(lambda: guard.judge(drift, version, cause), self.accelerator)
        return {"drift/largest": drift.largest, "drift/mean": drift.mean}
