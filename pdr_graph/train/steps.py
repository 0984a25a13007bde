"""One step's batches: weights are pushed, rollouts drawn, compared, checked for drift, and dealt.

The drift guard: after a push some fresh rows are scored by the trainer, and compared with the
log-probabilities that were recorded when they were drawn. Weights that did not arrive, or arrived
in part, cause no error anywhere else: the server answers every call, and training goes on with
ratios that mean nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from pdr_graph.errors import ConfigError, PDRError, install_command
from pdr_graph.eval.problems import Problem
from pdr_graph.train.objective import Batch, padded
from pdr_graph.train.plan import Schedule, share_of
from pdr_graph.train.push import WeightPush
from pdr_graph.train.ranks import together
from pdr_graph.train.rollouts import Collect, Rollouts
from pdr_graph.train.rows import TrainRow, compared, dealt, filled
from pdr_graph.train.run_folder import Figures, StepTally
from pdr_graph.train.settings import DriftSettings, Precision, TrainSettings

try:
    import torch
    from accelerate import Accelerator
    from accelerate.utils import gather_object
    from torch import Tensor, nn
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

LARGEST_FP32 = 1e-3
"""Two correct implementations in float32 differ by less than 1e-5."""
MEAN_BF16 = 0.05
"""In bfloat16 single tokens differ by tenths; only their mean is telling."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Difference of log-probabilities between the policy that drew and the trainer, in nats."""

    largest: float
    mean: float
    """Of absolute values."""
    tokens: int

    @classmethod
    def between(cls, logprobs_B_T: Tensor, batch: Batch) -> "Drift":
        """Return the drift of some rows; 0 if they have no token."""
        gaps = (logprobs_B_T - batch.behaviour_B_T)[batch.mask_B_T].abs()
        if not gaps.numel():
            return cls(0.0, 0.0, 0)
        return cls(float(gaps.max()), float(gaps.mean()), gaps.numel())

    @classmethod
    def over_ranks(cls, drifts: Sequence["Drift"]) -> "Drift":
        """Return the drift of all ranks' rows together."""
        tokens = sum(drift.tokens for drift in drifts)
        if not tokens:
            return cls(0.0, 0.0, 0)
        # Python's maximum of NaN and a number may be either.
        largest = max((d.largest for d in drifts), key=lambda each: (math.isnan(each), each))
        mean = sum(drift.mean * drift.tokens for drift in drifts) / tokens
        return cls(largest, mean, tokens)


class DriftError(PDRError, RuntimeError):
    """The policy that draws tokens is not the model that is trained."""

    def __init__(self, drift: Drift, limit: str, policy_version: int, cause: str) -> None:
        self.drift = drift
        self.policy_version = policy_version
        super().__init__(
            f"the policy that drew the rollouts is not the model that is trained: after "
            f"{policy_version} updates their log-probabilities differ by up to "
            f"{drift.largest:.3g} (mean {drift.mean:.3g}) over {drift.tokens} tokens, and "
            f"{limit} is allowed; {cause}"
        )


@dataclass(frozen=True, slots=True)
class DriftGuard:
    """Chooses the rows that are compared, and judges the drift."""

    settings: DriftSettings
    precision: Precision

    def is_due(self, step: int) -> bool:
        """Return whether a step is checked."""
        return bool(self.settings.every) and step % self.settings.every == 0

    def chosen(self, rows: Sequence[TrainRow | None], policy_version: int) -> list[TrainRow | None]:
        """Return the rows to score again, spread over all that the newest policy drew.

        Always as many as the settings say, with fillers if there are too few: every rank makes the
        same forward pass.
        """
        fresh = [row for row in rows if row and row.call.policy_version == policy_version]
        taken = min(self.settings.rows, len(fresh))
        spread = [fresh[index * len(fresh) // taken] for index in range(taken)]
        return [*spread, *[None] * (self.settings.rows - taken)]

    def judge(self, drift: Drift, policy_version: int, cause: str) -> None:
        """Raise if the drift is above the bound.

        Raises:
            DriftError: it is, or a value is not finite; the sentence has the figures and `cause`.
        """
        tolerance = self.settings.tolerance
        if self.precision == "fp32":
            bound, value, limit = tolerance or LARGEST_FP32, drift.largest, "{:g}"
        else:
            bound, value, limit = tolerance or MEAN_BF16, drift.mean, "a mean of {:g}"
        # Negated, so that a NaN does not pass.
        if not value <= bound:
            raise DriftError(drift, limit.format(bound), policy_version, cause)


@dataclass(slots=True)
class StepSource:
    """Draws the batches of each step on this rank, together with the other ranks."""

    problems: Sequence[Problem]
    settings: TrainSettings
    collect: Collect
    push: WeightPush
    pad_id: int
    accelerator: Accelerator
    _schedule: Schedule = field(init=False)
    _guard: DriftGuard = field(init=False)
    _pushed: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Make the schedule.

        Raises:
            ConfigError: there are fewer problems than a step has.
        """
        self._schedule = self.settings.schedule(len(self.problems))
        self._guard = DriftGuard(self.settings.drift, self.settings.devices.precision)

    def draw(
        self, step: int, model: nn.Module, logprobs: Callable[[Batch], Tensor]
    ) -> tuple[list[Batch], Figures]:
        """Return this rank's micro-batches of a step in their order, and the step's figures.

        Args:
            step: Its number, from 0.
            model: The trained model, unwrapped.
            logprobs: The trainer's log-probabilities of a batch, without gradient.

        Raises:
            DriftError: the policy is not the model.
            PushError: the policy did not take the weights.
            RankError: something failed on another rank.
        """
        version = step * self.settings.optimiser.updates_per_step
        began = perf_counter()
        if self._pushed != version:
            together(lambda: self.push.push(model, version), self.accelerator)
            self._pushed = version
        pushed = perf_counter()
        rollouts = together(lambda: self._rollouts(step, version, model), self.accelerator)
        seconds = perf_counter() - pushed
        rows = filled(compared(rollouts.rows), self._schedule.num_rows)
        tally = StepTally.of(rollouts.trajectories, rows)
        figures = StepTally.together(gather_object([tally])).figures()
        if figures.get("tokens/sampled") and seconds:
            figures["tokens_per_second/sampled"] = figures["tokens/sampled"] / seconds
        figures |= {"seconds/push": pushed - began, "seconds/collect": seconds}
        figures |= self._check(step, rows, version, logprobs)
        return self._batches(step, rows), {"policy_version": version, **figures}

    def _rollouts(self, step: int, version: int, model: nn.Module) -> Rollouts:
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        problems = [self.problems[index] for index in self._schedule.problems(step)]
        training = model.training
        # A policy in this process is this module.
        model.eval()
        try:
            return self.collect(
                share_of(problems, rank, ranks),
                share_of(self._schedule.plans(step), rank, ranks),
                seed=self._schedule.rollout_seed(step, rank),
                policy_version=version,
            )
        finally:
            model.train(training)

    def _check(
        self,
        step: int,
        rows: Sequence[TrainRow | None],
        version: int,
        logprobs: Callable[[Batch], Tensor],
    ) -> Figures:
        if not self._guard.is_due(step):
            return {}
        batch = padded(self._guard.chosen(rows, version), pad_id=self.pad_id)
        batch = batch.to(self.accelerator.device)
        here = Drift.between(logprobs(batch), batch)
        drifts: list[Drift] = gather_object([here])
        drift = Drift.over_ranks(drifts)
        # Together, so that all ranks stop if one must.
        together(lambda: self._guard.judge(drift, version, self.push.cause), self.accelerator)
        return {"drift/largest": drift.largest, "drift/mean": drift.mean}

    def _batches(self, step: int, rows: Sequence[TrainRow | None]) -> list[Batch]:
        optimiser = self.settings.optimiser
        order = self._schedule.shuffled(len(rows), step, self.accelerator.process_index)
        updates = [
            [padded(each, pad_id=self.pad_id) for each in update]
            for update in dealt(rows, order, optimiser.updates_per_step, optimiser.micro_batch_rows)
        ]
        here = torch.stack(
            [torch.stack([batch.counts for batch in update]).sum(0) for update in updates]
        )
        counts = self.accelerator.reduce(here.to(self.accelerator.device), reduction="sum").cpu()
        return [
            replace(batch, counts=of_update)
            for update, of_update in zip(updates, counts, strict=True)
            for batch in update
        ]
