"""Figures of a step: what was collected, and what the updates made of it.

Sums are kept with their weights, so that figures of several ranks are those of all rows together.

Figures of an update: summed over its micro-batches on each rank, then over the ranks.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Self

import torch
from accelerate import Accelerator

from pdr_graph.train.advantage import Advantages, TrainRow
from pdr_graph.train.batch import Batch, Scores
from pdr_graph.train.objective import Objective
from pdr_graph.train.trajectory import Trajectory

Figures = dict[str, float]
"""By name; a slash separates the subject from what is said of it."""


@dataclass(slots=True)
class StepTally:
    """Totals and means over calls, rows or tokens, of one rank or of several."""

    totals: dict[str, float] = field(default_factory=dict)
    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Sum and number."""
    largest: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, number: float) -> None:
        """Add to a total."""
        self.totals[name] = self.totals.get(name, 0.0) + number

    def observe(self, name: str, value: float, weight: float = 1.0) -> None:
        """Add a value to a mean."""
        total, number = self.means.get(name, (0.0, 0.0))
        self.means[name] = total + value * weight, number + weight

    def reach(self, name: str, value: float) -> None:
        """Keep the largest value."""
        self.largest[name] = max(value, self.largest.get(name, value))

    @classmethod
    def together(cls, tallies: Iterable[Self]) -> Self:
        """Return what several ranks counted, as one."""
        whole = cls()
        for tally in tallies:
            for name, number in tally.totals.items():
                whole.count(name, number)
            for name, (total, number) in tally.means.items():
                if number:
                    whole.observe(name, total / number, number)
            for name, value in tally.largest.items():
                whole.reach(name, value)
        return whole

    def figures(self) -> Figures:
        """Return all of it by name; a mean of nothing is left out."""
        means = {name: total / number for name, (total, number) in self.means.items() if number}
        return {**self.totals, **means, **self.largest}


def tally_of(
    trajectories: Sequence[Trajectory],
    rows_P: Sequence[Sequence[TrainRow]],
    compared: Advantages,
    *,
    num_slots: int,
) -> StepTally:
    """Return what a rank collected in a step.

    Args:
        trajectories: The runs.
        rows_P: Of each problem, the calls that are trained on.
        compared: Their advantages.
        num_slots: Rows that the step has room for on this rank.
    """
    tally = StepTally()
    for trajectory in trajectories:
        tally.observe("reward/run", trajectory.reward)
        tally.count("calls/failed", trajectory.failed_calls)
        tally.count("calls/made", len(trajectory.calls))
        for call in trajectory.calls:
            tally.count("tokens/sampled", len(call.token_ids))
            tally.count("tokens/prompt", len(call.prompt_ids))
    rows = [row for rows in rows_P for row in rows]
    for row in rows:
        role, length = row.call.role, len(row.call.token_ids)
        tally.observe(f"reward/{role}", row.reward)
        tally.observe(f"length/{role}", length)
        tally.reach("length/largest", len(row.call.prompt_ids) + length)
        tally.observe("rows/truncated", row.call.finish_reason == "length")
        tally.observe("rows/correct", row.correct)
    tally.count("rows/trained", len(rows))
    tally.count("rows/fillers", num_slots - len(rows))
    for group in compared.groups:
        tally.observe("groups/flat", group.is_flat)
    return tally


def per_second(figures: Mapping[str, float], what: str, seconds: float) -> Figures:
    """Return how fast the tokens of a kind went, where there were some."""
    tokens = figures.get(f"tokens/{what}", 0.0)
    return {f"tokens_per_second/{what}": tokens / seconds} if tokens and seconds > 0 else {}


SUMS = ("tokens", "clipped", "entropy", "policy_loss", "likelihood_loss")


class UpdateFigures:
    """Follows one update after another."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._sums = torch.zeros(len(SUMS), device=accelerator.device)
        self._began = 0.0

    def begin(self) -> None:
        """Start an update."""
        self._sums.zero_()
        self._began = perf_counter()

    def add(self, batch: Batch, scores: Scores, part: Objective) -> None:
        """Add a micro-batch."""
        tokens, entropy = batch.mask_B_T.sum(), scores.entropy_B_T[batch.mask_B_T].sum()
        sums = (tokens, part.clipped_tokens, entropy, part.policy_loss, part.likelihood_loss)
        self._sums += torch.stack([each.detach().float() for each in sums])

    def finish(self) -> Figures:
        """Return the figures of the update; called on every rank."""
        seconds = perf_counter() - self._began
        totals = self._accelerator.reduce(self._sums.clone(), reduction="sum").tolist()
        sums = dict(zip(SUMS, totals, strict=True))
        tokens = sums["tokens"]
        return {
            "tokens/trained": tokens,
            "policy/clipped": sums["clipped"] / max(1.0, tokens),
            "policy/entropy": sums["entropy"] / max(1.0, tokens),
            "loss/policy": sums["policy_loss"],
            "loss/likelihood": sums["likelihood_loss"],
            "seconds/update": seconds,
            "tokens_per_second/trained": tokens / seconds,
        }
