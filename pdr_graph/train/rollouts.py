"""Collects what a training step learns from: runs of the graph, and the rows of each problem.

    collector = Collector(client, judge, config)
    rollouts = await collector.collect(problems, plans, seed=7, policy_version=0)
    rollouts.rows[0]     # of the first problem, at most K of `advantage.Row`

Plan `direct` runs long CoT K times; `rounds` runs one round and its refinement as often as fits;
`workspace` is one run of two rounds, whose second reads the one workspace of the first by the
refinement's own template: its drafts are the refinements, and a vote ends the run without a call.

Every trajectory of a run, in a file; what a resumed run draws again is there once.
"""

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError, ConfigError
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.extensions import Extensions
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.client import ModelClient
from pdr_graph.prompts import Prompts
from pdr_graph.trace import TraceRecord
from pdr_graph.train.advantage import DistillCredit, DraftCredit, TrainRow, rows_of
from pdr_graph.train.plan import ProblemPlan, config_of_run
from pdr_graph.train.recorder import Recorder, role_of, run_name, version_of
from pdr_graph.train.supervised import TRAJECTORIES
from pdr_graph.train.trajectory import Role, Trajectory, append_trajectories

T = TypeVar("T")

_WHOLE: dict[str, object] = {
    "quorum": 1.0,
    "stop_on_consensus": None,
    "pool_rounds": False,
    "verifier": "none",
    "max_extra_rounds": 0,
    "max_total_tokens": None,
    "deadline_s": None,
    "thinking_token_budget": None,
}
"""Fields that would end a run early, prolong it, or put tokens into it that nobody drew."""

_ONE_EACH = frozenset({"random_k", "top_k_per_sample"})
"""Distillers that make a workspace for each call that reads one."""


@dataclass(frozen=True, slots=True)
class ProblemRows:
    """What one problem gives a step."""

    problem_id: str
    plan: ProblemPlan
    rows: tuple[TrainRow, ...]
    """At most `plan.num_rows`: run by run, and in a run as its trajectory has them."""

    @property
    def num_missing(self) -> int:
        """Rows that are not there: their calls failed, were never made, or earn no credit."""
        return self.plan.num_rows - len(self.rows)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What a step learns from."""

    problems: tuple[ProblemRows, ...]
    """In the order in which they were asked for."""
    trajectories: tuple[Trajectory, ...]
    """Every run: problem by problem, and of a problem in the order of its runs."""

    @property
    def rows(self) -> tuple[tuple[TrainRow, ...], ...]:
        """Of each problem, in the order asked, the calls that are trained on."""
        return tuple(problem.rows for problem in self.problems)

    @property
    def failed_calls(self) -> int:
        """Calls that failed or were cancelled."""
        return sum(trajectory.failed_calls for trajectory in self.trajectories)

    @property
    def stopped_runs(self) -> int:
        """Runs that ended without an answer."""
        return sum(bool(trajectory.stopped) for trajectory in self.trajectories)

    @property
    def num_tokens(self) -> int:
        """Tokens drawn in all, those of calls without rows included."""
        return sum(len(call.token_ids) for each in self.trajectories for call in each.calls)


@dataclass(frozen=True, slots=True)
class Collector:
    """Runs plans on problems, many at once, in memory."""

    client: ModelClient
    """Its model tells tokens: `ChatVLLM` by `telling_tokens`, or `PolicyChat`."""
    judge: Judge
    config: PDRConfig
    """What every run shares: distiller, kappa, lengths, prompts; the plan sets widths and finish,
    the collector each run's seed."""
    extensions: Extensions | None = None
    prompts: Prompts | None = None
    """None is the built-in ones."""
    draft_credit: DraftCredit = "own"
    """What a draft is rewarded for; `outcome` only where a problem has several runs."""
    distill_credit: DistillCredit = "none"
    runs_at_once: int = 512
    _recorder: Recorder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a config whose runs do not have their plan's calls.

        Raises:
            ConfigError: one sentence names the field and the remedy, or the model does not tell
                tokens.
        """
        for name, value in _WHOLE.items():
            asked = getattr(self.config, name)
            if asked != value:
                raise ConfigError(
                    f"{name} {asked!r}: a run that is trained on makes the calls of its plan, no "
                    f"more and no fewer, each drawn from the model alone; leave {name} at {value!r}"
                )
        if self.runs_at_once < 1:
            raise ConfigError(f"runs_at_once {self.runs_at_once} starts nothing; use 1 or more")
        recorder = Recorder(
            self.client, self.judge, extensions=self.extensions, prompts=self.prompts
        )
        object.__setattr__(self, "_recorder", recorder)

    async def collect(
        self,
        problems: Sequence[Problem],
        plans: Sequence[ProblemPlan],
        *,
        seed: int,
        policy_version: int,
    ) -> Rollouts:
        """Run each problem's plan and return what came of it.

        Args:
            problems: What is asked, with gold answers.
            plans: One for each problem.
            seed: With the problem's position and the run's it gives each run its seed, and with
                `policy_version` as well its name.
            policy_version: Number of weight updates before the policy that the client calls.

        Raises:
            ConfigError: a plan does not suit the config or the credits, sampling is cut or greedy,
                or the model does not tell tokens.
            ContextWindowError: prompt and completion do not fit the model, found before any call.
            EndpointError: the server did not send token ids and log-probabilities.
            CallError: not a single call succeeded.
        """
        if len(problems) != len(plans):
            raise ConfigError(f"{len(problems)} problems have {len(plans)} plans; give each one")
        for plan in set(plans):
            self._check(plan)
        slots = asyncio.Semaphore(self.runs_at_once)

        async def run(problem: Problem, plan: ProblemPlan, name: str, run_seed: int) -> Trajectory:
            async with slots:
                return await self._recorder.record(
                    problem,
                    config_of_run(self.config, plan, run_seed),
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
        return Rollouts(tuple(self._rows(problems, plans, trajectories)), tuple(trajectories))

    def _check(self, plan: ProblemPlan) -> None:
        if plan.kind == "workspace":
            if self.draft_credit == "outcome":
                raise ConfigError(
                    "draft credit 'outcome' and plan 'workspace': the drafts of a problem share "
                    "one workspace, whose outcome does not tell them apart; use credit 'own' or "
                    "'none', or plan 'rounds'"
                )
            if self.config.distiller in _ONE_EACH:
                raise ConfigError(
                    f"distiller {self.config.distiller!r} makes a workspace for each refinement, "
                    "and plan 'workspace' compares refinements of one; use another distiller, or "
                    "plan 'rounds'"
                )
        if plan.kind == "rounds":
            self._check_distills(plan)

    def _check_distills(self, plan: ProblemPlan) -> None:
        distiller = (self.extensions or Extensions()).distiller(self.config.distiller)
        most = distiller.max_calls(plan.num_drafts, 1, self.config.k)
        credited = most if self.distill_credit == "outcome" else 0
        if plan.num_distills != credited:
            raise ConfigError(
                f"distiller {self.config.distiller!r} with credit {self.distill_credit!r} has "
                f"{credited} rows in each run, and the plan's num_distills is "
                f"{plan.num_distills}; set num_distills {credited}"
            )

    def _rows(
        self,
        problems: Sequence[Problem],
        plans: Sequence[ProblemPlan],
        trajectories: Sequence[Trajectory],
    ) -> list[ProblemRows]:
        found, start = [], 0
        for problem, plan in zip(problems, plans, strict=True):
            runs = trajectories[start : start + plan.num_runs]
            start += plan.num_runs
            rows = rows_of(runs, draft_credit=self.draft_credit, distill_credit=self.distill_credit)
            found.append(ProblemRows(problem.id, plan, tuple(rows)))
        return found


def _refining(record: TraceRecord) -> Role:
    """Return what a call of plan `workspace` was for: its second round refines."""
    if record["node"] == "drafter" and record["round"] == 2:
        return "refine" if record["template"] == "improve" else "direct"
    return role_of(record)


async def _all_or_none(runs: Sequence[Coroutine[None, None, T]]) -> list[T]:
    """Return what all give; the first error ends the others, and is raised."""
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def keep(folder: Path, trajectories: Sequence[Trajectory]) -> None:
    """Append what was drawn; several processes may."""
    append_trajectories(folder / TRAJECTORIES, trajectories)


def forget_after(folder: Path, update: int) -> None:
    """Drop what was drawn by weights that a run going on from an update makes again.

    A step is drawn by the weights at its beginning, so what it drew is kept by the checkpoint if
    that was written after it.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / TRAJECTORIES
    if not file.is_file():
        return
    part = file.with_suffix(".part")
    with file.open("rb") as lines, part.open("wb") as kept:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n") and _version(line, f"{file} line {number}") < update:
                kept.write(line)
    part.replace(file)


def _version(line: bytes, where: str) -> int:
    try:
        # Not of its calls: all of them may have failed.
        return version_of(json.loads(line)["thread_id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where} is no trajectory; remove the line") from None
