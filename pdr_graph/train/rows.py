"""The rows of a step: credited calls, compared within groups, and dealt to updates.

A call is compared with the calls of its role on its problem: its advantage is
(r − mean) / (std + 1e-4), with the sample's standard deviation (over n − 1), as in TRL's GRPO. A
group whose rewards are all equal teaches nothing; such groups are counted.

Every problem has exactly K slots, so that all ranks make the same number of forward passes. A call
that failed, or that earns no credit, leaves a filler (None) without a gradient.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pdr_graph.errors import ConfigError
from pdr_graph.train.settings import ObjectiveSettings
from pdr_graph.train.trajectory import Call, Role, Trajectory

EPSILON = 1e-4
"""Keeps the quotient finite; the same as TRL's."""

_CREDITED: frozenset[Role] = frozenset({"direct", "refine", "select", "draft", "distill"})
"""A judge is not credited: it may be right where the solution is wrong."""

_ANSWERS: frozenset[Role] = frozenset({"direct", "refine"})
"""Calls whose reply is an answer of the run."""


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One call that is trained on, from the graph to the loss."""

    problem_id: str
    call: Call
    reward: float
    advantage: float = 0.0
    """Filled in by `compared`."""

    @property
    def correct(self) -> bool:
        """Whether its likelihood is raised beside the policy gradient (the paper's J_SFT)."""
        return self.reward > 0

    @property
    def num_tokens(self) -> int:
        """Length of prompt and completion in tokens."""
        return len(self.call.prompt_ids) + len(self.call.token_ids)


def rows_of(trajectories: Iterable[Trajectory], objective: ObjectiveSettings) -> list[TrainRow]:
    """Return the calls that are trained on, each with its reward."""
    rows = []
    for trajectory in trajectories:
        for call in trajectory.calls:
            reward = _credit(trajectory, call, objective)
            if reward is not None:
                rows.append(TrainRow(trajectory.problem_id, call, reward))
    return rows


def _credit(trajectory: Trajectory, call: Call, objective: ObjectiveSettings) -> float | None:
    """Return what a call is rewarded with; None leaves it out."""
    if call.role not in _CREDITED:
        return None
    if call.role == "draft" and objective.draft_credit != "outcome":
        return call.reward if objective.draft_credit == "own" else None
    if call.role == "distill" and objective.distill_credit == "none":
        return None
    # One of several answers of a run earns its own reward, not that of their vote.
    if call.role in _ANSWERS:
        return call.reward
    # The outcome is unknown: calls failed.
    if trajectory.stopped and trajectory.failed_calls:
        return None
    return trajectory.reward


def groups_of(rows: Iterable[TrainRow]) -> list[list[TrainRow]]:
    """Return the rows by problem and role, in the order of their first rows."""
    groups: dict[tuple[str, Role], list[TrainRow]] = {}
    for row in rows:
        groups.setdefault((row.problem_id, row.call.role), []).append(row)
    return list(groups.values())


def is_flat(group: Sequence[TrainRow]) -> bool:
    """Return whether all rewards of a group are equal, so that every advantage is 0."""
    return all(row.reward == group[0].reward for row in group)


def compared(rows_P: Sequence[Sequence[TrainRow]]) -> list[list[TrainRow]]:
    """Return the rows of each problem with their advantages."""
    moments = {}
    for group in groups_of(row for rows in rows_P for row in rows):
        moments[group[0].problem_id, group[0].call.role] = _moments(group)

    def with_advantage(row: TrainRow) -> TrainRow:
        mean, std = moments[row.problem_id, row.call.role]
        return replace(row, advantage=(row.reward - mean) / (std + EPSILON))

    return [[with_advantage(row) for row in rows] for rows in rows_P]


def _moments(group: Sequence[TrainRow]) -> tuple[float, float]:
    """Return mean and standard deviation; the latter is exactly 0 in a flat group."""
    if is_flat(group):
        return group[0].reward, 0.0
    rewards_G = [row.reward for row in group]
    mean = math.fsum(rewards_G) / len(rewards_G)
    squares = math.fsum((reward - mean) ** 2 for reward in rewards_G)
    return mean, math.sqrt(squares / (len(rewards_G) - 1))


def filled(rows_P: Sequence[Sequence[TrainRow]], num_rows: int) -> list[TrainRow | None]:
    """Return exactly K rows of each problem, one problem after another; None is a filler.

    Raises:
        ConfigError: a problem has more than K.
    """
    slots: list[TrainRow | None] = []
    for rows in rows_P:
        if len(rows) > num_rows:
            raise ConfigError(
                f"problem {rows[0].problem_id!r} has {len(rows)} rows, and a step has room for "
                f"{num_rows} of each; collect by a plan of {num_rows} rows"
            )
        slots += [*rows, *[None] * (num_rows - len(rows))]
    return slots


def dealt(
    rows: Sequence[TrainRow | None], order: Sequence[int], num_updates: int, rows_at_once: int
) -> list[list[list[TrainRow | None]]]:
    """Deal rows to updates in the given order, and split each update into micro-batches.

    Within an update rows of similar length go together. This saves padding and does not change the
    loss.

    Raises:
        ConfigError: the rows cannot be split evenly.
    """
    each, rest = divmod(len(rows), num_updates * rows_at_once)
    if rest or not each:
        raise ConfigError(
            f"{len(rows)} rows of a process cannot be split into {num_updates} updates of "
            f"micro-batches of {rows_at_once}; use a divisor of {len(rows) // num_updates}"
        )
    per_update = each * rows_at_once
    updates = []
    for start in range(0, len(rows), per_update):
        chosen = [rows[index] for index in order[start : start + per_update]]
        chosen.sort(key=lambda row: row.num_tokens if row else 1, reverse=True)
        updates.append([chosen[i : i + rows_at_once] for i in range(0, per_update, rows_at_once)])
    return updates
