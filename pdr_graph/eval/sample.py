"""One sample: one attempt of one arm at one problem, from its thread to its record.

First-round drafts that several arms share, on request: asked for once, charged to each arm.

Arms that draw their samples' seeds alike ask for the same drafts, word for word. Within one process
each is asked for once; another process, or a run that is gone on with, asks again, and gets the
same drafts from a server that repeats itself by seed.
"""

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from langgraph.checkpoint.base import BaseCheckpointSaver

from pdr_graph.budget import Ledger
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, PDRError, ThreadExistsError, UnknownThreadError
from pdr_graph.eval.arms import Arm
from pdr_graph.eval.judge import Judge, Judgement, with_oracles
from pdr_graph.eval.problems import Problem
from pdr_graph.eval.records import SCHEMA, DraftRecord, Key, SampleRecord, WorkspaceRecord
from pdr_graph.extensions import Extensions
from pdr_graph.llm.client import ModelClient, OnChunk, Reply, Sampling
from pdr_graph.llm.usage import Spent
from pdr_graph.run import OnEvent, Parts, Result, resume, solve
from pdr_graph.run_history import RoundView, history
from pdr_graph.types import Workspace


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample that is owed."""

    arm: Arm
    problem: Problem
    number: int
    """From 0."""
    position: int
    """Among all samples of the run, from 0."""
    thread_id: str
    seed: int

    @property
    def key(self) -> Key:
        """What tells it from all others of its run."""
        return self.arm.name, self.problem.id, self.number

    @property
    def config(self) -> PDRConfig:
        """What its run is asked to do."""
        return self.arm.config.model_copy(update={"seed": self.seed})


@dataclass(frozen=True, slots=True)
class Facts:
    """What the records of one run and process have in common."""

    data_sha256: str
    prompts_sha256: Mapping[str, str]
    versions: Mapping[str, str]
    dependent: frozenset[str]
    """Arms that share first-round drafts with another."""


@dataclass(frozen=True, slots=True)
class Lab:
    """What a sample is run with."""

    client: ModelClient
    saver: BaseCheckpointSaver[str]
    judge: Judge
    extensions: Extensions
    parts: Parts
    """Prompts, trace and stop control; extensions and events are set for each sample."""
    facts: Facts

    async def run(self, sample: Sample, on_event: OnEvent) -> SampleRecord:
        """Start the sample, or go on with it, to its end.

        Raises:
            CallError, QuorumError: it failed, and can be gone on with.
            DrainedError: it was asked to stop, and can be gone on with.
        """
        oracles = with_oracles(self.judge, sample.problem, self.extensions)
        parts = replace(self.parts, extensions=oracles, on_event=on_event)
        result = await self._finished(sample, parts)
        solution = result.state["solution"]
        assert solution is not None  # the run has ended
        judged = await self.judge.solution(
            sample.problem, result.solution, truncated=solution["truncated"]
        )
        record = self._blank(sample)
        agreed = result.state.get("consensus") is not None
        record["answer"] = judged.answer
        record["correct"] = judged.correct
        record["reason"] = judged.reason
        record["truncated"] = solution["truncated"]
        record["finish"] = "consensus" if agreed else solution["finish"]
        record["rounds_run"] = result.state["round"]
        record["ledger"] = result.ledger.to_json()
        record["seconds"] = round(result.seconds, 3)
        record["notes"] = list(result.notes)
        if result.state["round"]:
            past = await history(sample.thread_id, checkpointer=self.saver)
            await self._look_inside(record, sample.problem, past.rounds)
        return record

    @property
    def drained(self) -> bool:
        """Whether it was asked to stop."""
        return self.parts.control is not None and self.parts.control.drain_requested

    async def forget(self, sample: Sample) -> None:
        """Delete the sample's thread."""
        await self.saver.adelete_thread(sample.thread_id)

    async def failed(self, sample: Sample, error: PDRError) -> SampleRecord:
        """Record a sample that ended without a solution, with what it had cost by then."""
        record = self._blank(sample)
        record["error"] = str(error)
        try:
            past = await history(sample.thread_id, checkpointer=self.saver)
        except UnknownThreadError:
            return record  # refused before its first step
        record["rounds_run"] = len(past.rounds)
        record["ledger"] = past.ledger.to_json()
        record["seconds"] = round(sum(row["seconds"] for row in past.ledger.rows), 3)
        record["notes"] = past.notes
        await self._look_inside(record, sample.problem, past.rounds)
        return record

    async def _finished(self, sample: Sample, parts: Parts) -> Result:
        config = sample.config
        try:
            return await solve(
                sample.problem.text,
                config,
                model=self.client,
                checkpointer=self.saver,
                thread_id=sample.thread_id,
                parts=parts,
            )
        except ThreadExistsError:
            # Begun before, by a process that died or was stopped.
            return await resume(
                sample.thread_id,
                model=self.client,
                checkpointer=self.saver,
                changes=config.model_dump(),
                parts=parts,
            )

    def _blank(self, sample: Sample) -> SampleRecord:
        """Return the record of a sample that failed before its first step."""
        return SampleRecord(
            schema=SCHEMA,
            arm=sample.arm.name,
            problem_id=sample.problem.id,
            sample=sample.number,
            thread_id=sample.thread_id,
            dependent=sample.arm.name in self.facts.dependent,
            answer=None,
            gold=sample.problem.gold,
            correct=False,
            reason="failed",
            truncated=False,
            finish=None,
            rounds_run=0,
            ledger=Ledger().to_json(),
            seconds=0.0,
            drafts=[],
            workspaces=[],
            prompts_sha256=dict(self.facts.prompts_sha256),
            data_sha256=self.facts.data_sha256,
            versions=dict(self.facts.versions),
            seed=sample.seed,
            model=self.client.name,
            error=None,
        )

    async def _look_inside(
        self, record: SampleRecord, problem: Problem, rounds: Sequence[RoundView]
    ) -> None:
        """Record whether each draft was right, and whether a workspace kept a right answer."""
        drafts = [draft for view in rounds for draft in view.drafts]
        judged = await asyncio.gather(*(self.judge.draft(problem, draft) for draft in drafts))
        record["drafts"] = [
            DraftRecord(
                round=draft["round"],
                index=draft["index"],
                answer=draft["answer"],
                correct=each.correct,
                reason=each.reason,
                truncated=draft["truncated"],
                error=draft["error"],
            )
            for draft, each in zip(drafts, judged, strict=True)
        ]
        right = right_answers(problem, judged)
        record["workspaces"] = [
            WorkspaceRecord(
                round=view.round,
                index=index,
                tokens=workspace["tokens"],
                holds_correct=holds_any(workspace, right),
                sources=workspace.get("sources"),
            )
            for view in rounds
            for index, workspace in enumerate(view.workspaces)
        ]


def right_answers(problem: Problem, judged: Sequence[Judgement]) -> set[str]:
    """Return the ways in which the right answer was written."""
    written = {each.answer for each in judged if each.correct and each.answer}
    return {problem.gold, *written}


def holds_any(workspace: Workspace, answers: set[str]) -> bool:
    """Tell whether one of the answers stands in a workspace, as a word or number of its own."""
    found = (_standing_alone(answer).search(workspace["text"]) for answer in answers)
    return any(found)


def _standing_alone(answer: str) -> re.Pattern[str]:
    # 42 is not in 142, 4.42, 4,420 or 42.5; it is in "x=42." and in "42 (3 of 4)".
    return re.compile(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)")


_MOST_KEPT = 8192
"""Replies; arms work on one problem at about the same time."""
_ALIKE = ("max_tokens", "temperature", "top_p", "thinking_token_budget", "answer")
"""Settings that the first drafts of two arms must have in common to be the same calls."""


def sharing_arms(arms: Sequence[Arm]) -> frozenset[str]:
    """Name the arms whose first drafts are also another's.

    Raises:
        ConfigError: there are no two such arms.
    """
    kinds = {
        arm.name: tuple(getattr(arm.config, name) for name in _ALIKE)
        for arm in arms
        if arm.config.widths
    }
    counts = Counter(kinds.values())
    sharing = frozenset(name for name, kind in kinds.items() if counts[kind] > 1)
    if not sharing:
        raise ConfigError(
            "--share-first-round: no two arms with drafts are alike in "
            f"{', '.join(_ALIKE)}; give them all the same, or leave it out"
        )
    return sharing


@dataclass(slots=True)
class _Asked:
    """One call, and its reply once it is there."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    reply: Reply | None = None
    cost: Spent = field(default_factory=Spent)


class SharingClient(ModelClient):
    """Makes a call once that several arms make, and charges it to each as if it had made it."""

    def __init__(self, client: ModelClient) -> None:
        super().__init__(
            client.model, counter=client.counter, retry=client.retry, window=client.window
        )
        self._client = client
        self._asked: OrderedDict[tuple[str, Sampling], _Asked] = OrderedDict()

    async def ask(
        self, prompt: str, sampling: Sampling, spent: Spent, on_chunk: OnChunk | None = None
    ) -> Reply:
        """Make a call, or wait for the one that was made before.

        Raises:
            CallError: it failed; whoever asks next tries again.
        """
        asked = self._asked.setdefault((prompt, sampling), _Asked())
        self._asked.move_to_end((prompt, sampling))
        while len(self._asked) > _MOST_KEPT:
            self._asked.popitem(last=False)
        async with asked.lock:
            if asked.reply is None:
                cost = Spent()
                try:
                    asked.reply = await self._client.ask(prompt, sampling, cost, on_chunk)
                finally:
                    _charge(cost, spent)  # whatever came of it
                asked.cost = cost
                return asked.reply
        _charge(asked.cost, spent)
        return asked.reply


def _charge(cost: Spent, spent: Spent) -> None:
    spent.requests += cost.requests
    spent.usage.extend(cost.usage)
    spent.failed += cost.failed
    spent.aborted += cost.aborted
    spent.seconds += cost.seconds
    spent.nominal += cost.nominal
