"""Role-aware advantages: a call is compared with calls of its role on its problem.

Within such a group the advantage is (r − mean) / (std + 1e-4) with the sample's standard deviation
(over n − 1), as in TRL's GRPO. A group whose rewards are all alike teaches nothing; such groups
are counted, since a batch of them is a step without effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pdr_graph.train.trajectory import Call, Role, Trajectory

EPSILON = 1e-4
"""Keeps the quotient finite, and equal to TRL's."""

DraftCredit = Literal["outcome", "own", "none"]
"""What a draft is rewarded for: the run's answer, its own, or nothing (it is not trained on)."""
DistillCredit = Literal["outcome", "none"]

_CREDITED: frozenset[Role] = frozenset({"direct", "refine", "select", "draft", "distill"})
"""A judge is not: it is right where the solution is wrong as well."""

_ANSWERS: frozenset[Role] = frozenset({"direct", "refine"})
"""What these calls say is an answer of the run, its only one where it has a single final call."""


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One call as the trainer sees it."""

    problem_id: str
    call: Call
    reward: float
    correct: bool
    """Whether its likelihood is raised beside the policy gradient (paper's J_SFT)."""


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """Calls that are compared with one another."""

    problem_id: str
    role: Role
    size: int
    mean: float
    std: float

    @property
    def is_flat(self) -> bool:
        """Whether all rewards are alike, so that every advantage is 0."""
        return self.std == 0.0


@dataclass(frozen=True, slots=True)
class Advantages:
    """The advantage of each row, and the groups that they were compared in."""

    values: tuple[float, ...]
    """In the order of the rows."""
    groups: tuple[RolloutGroup, ...]
    """In the order of their first rows."""

    @property
    def flat_share(self) -> float:
        """Share of groups without a difference, in [0, 1]; 0 where there are no groups."""
        if not self.groups:
            return 0.0
        return sum(group.is_flat for group in self.groups) / len(self.groups)


def rows_of(
    trajectories: Sequence[Trajectory],
    *,
    draft_credit: DraftCredit = "outcome",
    distill_credit: DistillCredit = "none",
) -> list[TrainRow]:
    """Return the calls that are trained on, each with its reward."""
    rows = []
    for trajectory in trajectories:
        for call in trajectory.calls:
            reward = _credit(trajectory, call, draft_credit, distill_credit)
            if reward is not None:
                rows.append(TrainRow(trajectory.problem_id, call, reward, correct=reward > 0))
    return rows


def _credit(
    trajectory: Trajectory, call: Call, draft_credit: DraftCredit, distill_credit: DistillCredit
) -> float | None:
    """Return what a call is rewarded with; None leaves it out."""
    if call.role not in _CREDITED:
        return None
    if call.role == "draft" and draft_credit != "outcome":
        return call.reward if draft_credit == "own" else None
    if call.role == "distill" and distill_credit == "none":
        return None
    # One of several answers of a run: each has earned its own, and not what their vote did.
    if call.role in _ANSWERS:
        return call.reward
    # What would have come of it is not known: the calls that failed drew nothing.
    if trajectory.stopped and trajectory.failed_calls:
        return None
    return trajectory.reward


def advantages(rows: Sequence[TrainRow]) -> Advantages:
    """Compare each row with the rows of its problem and role."""
    members: dict[tuple[str, Role], list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault((row.problem_id, row.call.role), []).append(index)
    values = [0.0] * len(rows)
    groups = []
    for (problem_id, role), indices in members.items():
        rewards_G = [rows[index].reward for index in indices]
        mean, std = _moments(rewards_G)
        groups.append(RolloutGroup(problem_id, role, len(indices), mean, std))
        for index, reward in zip(indices, rewards_G, strict=True):
            values[index] = (reward - mean) / (std + EPSILON)
    return Advantages(tuple(values), tuple(groups))


def _moments(rewards_G: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the latter is exactly 0 where all are alike."""
    first = rewards_G[0]
    if all(reward == first for reward in rewards_G):
        return first, 0.0
    mean = math.fsum(rewards_G) / len(rewards_G)
    squares = math.fsum((reward - mean) ** 2 for reward in rewards_G)
    return mean, math.sqrt(squares / (len(rewards_G) - 1))
