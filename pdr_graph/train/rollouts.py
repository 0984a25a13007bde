"""Collects what a training step learns from: runs of the graph, and the rows of each problem.

    collector = Collector(client, judge, settings)
    rollouts = await collector.collect(problems, plans, seed=7, policy_version=0)
    rollouts.rows[0]     # rows of the first problem, at most K

Plan `direct` runs long CoT K times. `rounds` runs one round and its refinement as often as fits.
`workspace` is one run of two rounds: its second round reads the one workspace of the first by the
refinement's template, so its drafts are the refinements, and a vote ends the run without a call.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from pdr_graph.errors import CallError, ConfigError
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.files import written_whole
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.client import ModelClient
from pdr_graph.trace import TraceRecord
from pdr_graph.train.plan import ProblemPlan, config_of_run
from pdr_graph.train.recorder import Recorder, role_of, run_name, version_of
from pdr_graph.train.rows import TrainRow, rows_of
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.supervised import TRAJECTORIES
from pdr_graph.train.trajectory import Role, Trajectory, append_trajectories

T = TypeVar("T")

RUNS_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Rollouts:
    """The runs of some problems, and what is trained on of them."""

    rows: Sequence[Sequence[TrainRow]]
    """Of each problem, in the order asked, at most K: run by run, as the trajectories have them."""
    trajectories: Sequence[Trajectory] = ()
    """Every run: problem by problem, and of a problem in the order of its runs."""


class Collect(Protocol):
    """Draws the rollouts of some problems, each by its plan."""

    def __call__(
        self,
        problems: Sequence[Problem],
        plans: Sequence[ProblemPlan],
        *,
        seed: int,
        policy_version: int,
    ) -> Rollouts:
        """Draw them from the current policy; the same seed and weights give the same rollouts."""


@dataclass(frozen=True, slots=True)
class Collector:
    """Runs plans on problems, many at once, in memory."""

    client: ModelClient
    """Its model returns tokens: `ChatVLLM` by `telling_tokens`, or `PolicyChat`."""
    judge: Judge
    settings: TrainSettings
    """Strategy of every run, and credits; a plan sets widths and finish."""
    _recorder: Recorder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the graph.

        Raises:
            ConfigError: the model does not return tokens.
        """
        object.__setattr__(self, "_recorder", Recorder(self.client, self.judge))

    async def collect(
        self,
        problems: Sequence[Problem],
        plans: Sequence[ProblemPlan],
        *,
        seed: int,
        policy_version: int,
    ) -> Rollouts:
        """Run each problem's plan.

        Args:
            problems: Problems with gold answers.
            plans: One for each problem, made by the settings.
            seed: Gives, with the positions of problem and run, each run its seed; with
                `policy_version` as well, its name.
            policy_version: Weight updates before the policy that the client calls.

        Raises:
            ContextWindowError: prompt and completion do not fit the model, found before any call.
            EndpointError: the server did not send token ids and log-probabilities.
            CallError: not a single call succeeded.
        """
        config = self.settings.config
        slots = asyncio.Semaphore(RUNS_AT_ONCE)

        async def run(problem: Problem, plan: ProblemPlan, name: str, run_seed: int) -> Trajectory:
            async with slots:
                return await self._recorder.record(
                    problem,
                    config_of_run(config, plan, run_seed),
                    policy_version=policy_version,
                    thread_id=name,
                    role=_refining if plan.kind == "workspace" else role_of,
                )

        runs = [
            run(
                problem,
                plan,
                run_name(policy_version, seed, position, index),
                derived_seed(seed, position, problem.id, index),
            )
            for position, (problem, plan) in enumerate(zip(problems, plans, strict=True))
            for index in range(plan.num_runs)
        ]
        trajectories = await _all_or_none(runs)
        if trajectories and not any(trajectory.calls for trajectory in trajectories):
            raise CallError(f"all calls of the step failed: {trajectories[0].stopped}")
        rows, start = [], 0
        for plan in plans:
            rows.append(
                rows_of(trajectories[start : start + plan.num_runs], self.settings.objective)
            )
            start += plan.num_runs
        return Rollouts(rows, trajectories)


def _refining(record: TraceRecord) -> Role:
    """Return what a call of plan `workspace` was for: its second round refines."""
    if record["node"] == "drafter" and record["round"] == 2:
        return "refine" if record["template"] == "improve" else "direct"
    return role_of(record)


async def _all_or_none(runs: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Return all results; the first error cancels the other runs, and is raised."""
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def keep(folder: Path, trajectories: Sequence[Trajectory]) -> None:
    """Append trajectories to the run's file; several processes may."""
    append_trajectories(folder / TRAJECTORIES, trajectories)


def forget_after(folder: Path, update: int) -> None:
    """Drop the trajectories that a run resumed after an update draws again.

    A step is drawn by the weights at its beginning: its trajectories stay if the checkpoint was
    written later.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / TRAJECTORIES
    if not file.is_file():
        return
    with file.open("rb") as lines, written_whole(file) as kept:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n") and _version(line, f"{file} line {number}") < update:
                kept.write(line)


def _version(line: bytes, where: str) -> int:
    try:
        # Not from its calls: all of them may have failed.
        return version_of(json.loads(line)["thread_id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where} is no trajectory; remove the line") from None
