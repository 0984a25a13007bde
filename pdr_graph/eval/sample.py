"""One sample: one attempt of one arm at one problem, from its thread to its record.

`SharingClient` serves arms that share the drafts of their first round. Such arms draw the seeds of
their samples alike, so their first drafts are the same calls, word for word. Within one process
each call is made once and charged to every arm. Another process, or a resumed run, makes it again,
and gets the same draft if the server reproduces its replies by seed.
"""

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from langgraph.checkpoint.base import BaseCheckpointSaver

from pdr_graph.answers import one_vote
from pdr_graph.budget import Ledger
from pdr_graph.config import PDRConfig
from pdr_graph.errors import (
    CallError,
    ConfigError,
    PDRError,
    QuorumError,
    ThreadExistsError,
    UnknownThreadError,
)
from pdr_graph.eval.arms import Arm
from pdr_graph.eval.judge import Judge, oracles
from pdr_graph.eval.problems import Problem
from pdr_graph.eval.records import SCHEMA, DraftRecord, Key, SampleRecord, WorkspaceRecord
from pdr_graph.events import OnEvent
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.client import ModelClient, OnChunk, Reply, Sampling
from pdr_graph.llm.models import Models
from pdr_graph.llm.usage import Spent
from pdr_graph.run import Parts, Result, resume, solve
from pdr_graph.run_history import RoundView, history
from pdr_graph.types import Workspace


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a run, to be run or finished."""

    arm: Arm
    problem: Problem
    number: int
    """Number among the samples of this arm at this problem, from 0."""
    position: int
    """Position among all samples of the run, from 0."""
    thread_id: str
    seed: int

    @property
    def key(self) -> Key:
        """What identifies it in its run."""
        return self.arm.name, self.problem.id, self.number

    @property
    def config(self) -> PDRConfig:
        """The arm's settings with the sample's own seed."""
        return self.arm.config.model_copy(update={"seed": self.seed})


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What all records of one run and process have in common."""

    data_sha256: str
    prompts_sha256: Mapping[str, str]
    versions: Mapping[str, str]
    dependent: frozenset[str]
    """Arms that share first-round drafts with another."""


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Runs samples in this process."""

    models: Models
    saver: BaseCheckpointSaver[str]
    judge: Judge
    parts: Parts
    """Prompts, trace and stop control; each sample adds its own oracles and events."""
    facts: RunFacts
    weigher: DraftJudge | None = None
    """Weighs drafts, in the arms that ask for weights; None leaves all alike."""

    async def run(self, sample: Sample, on_event: OnEvent) -> SampleRecord:
        """Run a sample to its end, from its last checkpoint if it was begun before.

        Returns:
            Its record; if it failed, with reason `failed` and what it had cost by then.

        Raises:
            DrainedError: the run was asked to stop; the sample can be resumed.
        """
        steps = oracles(self.judge, sample.problem, self.weigher).of(sample.config)
        parts = replace(self.parts, extensions=steps, on_event=on_event)
        try:
            result = await self._solve(sample, parts)
        except (CallError, QuorumError) as error:
            return await self._failed(sample, error)
        state, solution = result.state, result.state["solution"]
        assert solution is not None  # the run has ended
        judged = await self.judge.solution(
            sample.problem, result.solution, truncated=solution["truncated"]
        )
        record = self._unsolved(sample)
        record["answer"] = judged.answer
        record["correct"] = judged.correct
        record["reason"] = judged.reason
        record["truncated"] = solution["truncated"]
        if solution.get("loop"):
            record["loop"] = True
        agreed = state.get("consensus") is not None
        record["finish"] = "consensus" if agreed else solution["finish"]
        record["rounds_run"] = state["round"]
        record["ledger"] = result.ledger.to_json()
        record["seconds"] = round(result.seconds, 3)
        record["notes"] = list(result.notes)
        if state["round"]:
            past = await history(sample.thread_id, checkpointer=self.saver)
            await self._add_rounds(record, sample.problem, past.rounds)
        return record

    async def _solve(self, sample: Sample, parts: Parts) -> Result:
        config = sample.config
        try:
            return await solve(
                sample.problem.text,
                config,
                model=self.models,
                checkpointer=self.saver,
                thread_id=sample.thread_id,
                parts=parts,
            )
        except ThreadExistsError:
            # A process began it, and then died or was stopped.
            return await resume(
                sample.thread_id,
                model=self.models,
                checkpointer=self.saver,
                changes=config.model_dump(),
                parts=parts,
            )

    async def _failed(self, sample: Sample, error: PDRError) -> SampleRecord:
        record = self._unsolved(sample)
        record["error"] = str(error)
        try:
            past = await history(sample.thread_id, checkpointer=self.saver)
        except UnknownThreadError:
            return record  # it failed before its first step
        record["rounds_run"] = len(past.rounds)
        record["ledger"] = replace(past.ledger, prices=self.models.prices).to_json()
        record["seconds"] = round(sum(row["seconds"] for row in past.ledger.rows), 3)
        record["notes"] = past.notes
        await self._add_rounds(record, sample.problem, past.rounds)
        return record

    def _unsolved(self, sample: Sample) -> SampleRecord:
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
            model=self.models.for_run(sample.config).name,
            error=None,
        )

    async def _add_rounds(
        self, record: SampleRecord, problem: Problem, rounds: Sequence[RoundView]
    ) -> None:
        """Record which drafts were right, and which workspaces hold a right answer."""
        drafts = [draft for view in rounds for draft in view.drafts]
        with one_vote():
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
                tokens=draft["tokens"],
            )
            for draft, each in zip(drafts, judged, strict=True)
        ]
        for kept, draft in zip(record["drafts"], drafts, strict=True):
            if draft.get("loop"):
                kept["loop"] = True
            if "signals" in draft:
                kept["signals"] = draft["signals"]
            if "weight" in draft:
                kept["weight"] = draft["weight"]
        right = {problem.gold, *(each.answer for each in judged if each.correct and each.answer)}
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


def holds_any(workspace: Workspace, answers: set[str]) -> bool:
    """Tell whether a workspace contains one of the answers as a word or number of its own.

    42 is not in 142, 4.42, 4,420 or 42.5; it is in "x=42." and in "42 (3 of 4)".
    """
    return any(
        re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w|[.,]\d)", workspace["text"])
        for answer in answers
    )


# ------------------------------------------------------------------ shared first-round drafts

_MOST_KEPT = 8192
"""Replies in memory; all arms work on one problem at about the same time."""
_SAME_CALL = ("max_tokens", "temperature", "top_p", "thinking_token_budget", "answer", "weighs")
"""Settings that two arms must have in common for their first drafts to be the same calls."""


def sharing_arms(arms: Sequence[Arm]) -> frozenset[str]:
    """Return the names of arms whose first drafts are the same calls as another arm's.

    Raises:
        ConfigError: there are none.
    """
    calls = {
        arm.name: tuple(getattr(arm.config, name) for name in _SAME_CALL)
        for arm in arms
        if arm.config.widths
    }
    counts = Counter(calls.values())
    sharing = frozenset(name for name, call in calls.items() if counts[call] > 1)
    if not sharing:
        raise ConfigError(
            "--share-first-round: no two arms with drafts are alike in "
            f"{', '.join(_SAME_CALL)}; make them alike, or leave the option out"
        )
    return sharing


@dataclass(slots=True)
class _SharedCall:
    """One call, and its reply and cost once it has one."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    reply: Reply | None = None
    cost: Spent = field(default_factory=Spent)


class SharingClient(ModelClient):
    """Makes equal calls once, and charges each arm as if it had made the call itself."""

    def __init__(self, client: ModelClient) -> None:
        super().__init__(
            client.model,
            counter=client.counter,
            retry=client.retry,
            window=client.window,
            price=client.price,
        )
        self._client = client
        self._calls: OrderedDict[tuple[str, Sampling], _SharedCall] = OrderedDict()

    async def ask(
        self, prompt: str, sampling: Sampling, spent: Spent, on_chunk: OnChunk | None = None
    ) -> Reply:
        """Make a call, or wait for the reply of an equal call made before.

        Raises:
            CallError: it failed; the next caller tries again.
        """
        call = self._calls.setdefault((prompt, sampling), _SharedCall())
        self._calls.move_to_end((prompt, sampling))
        while len(self._calls) > _MOST_KEPT:
            self._calls.popitem(last=False)
        async with call.lock:
            if call.reply is None:
                cost = Spent()
                try:
                    call.reply = await self._client.ask(prompt, sampling, cost, on_chunk)
                finally:
                    _charge(cost, spent)  # a failed call too
                call.cost = cost
                return call.reply
        _charge(call.cost, spent)
        return call.reply


def _charge(cost: Spent, spent: Spent) -> None:
    for each in fields(Spent):
        setattr(spent, each.name, getattr(spent, each.name) + getattr(cost, each.name))
