"""Makes one draft; M_r of them run in parallel.

A round ends when a quorum of its drafts is in; the others are cut off. Its drafts are tasks of one
process and meet at a gate. The count of a gate is not checkpointed: a resumed round counts anew,
and at worst waits for all the drafts that it still owes.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from langgraph.runtime import Runtime

from pdr_graph.answers import answer_kind
from pdr_graph.budget import b_total
from pdr_graph.config import PDRConfig, drafts_awaited
from pdr_graph.errors import CallError, TransientError
from pdr_graph.events import DraftEvent
from pdr_graph.judge import logprob_signals
from pdr_graph.llm.asker import Asker
from pdr_graph.llm.client import LOOP, Reply
from pdr_graph.llm.tokens import clip
from pdr_graph.nodes.toolbox import Toolbox, charged, run_key, tell
from pdr_graph.state import DraftTask, config_of, read_shared
from pdr_graph.step import attempt, closing_line, weigh
from pdr_graph.types import Draft, DraftError

T = TypeVar("T")


class Gate:
    """Opens once enough drafts of one round have a solution."""

    def __init__(self, needed: int) -> None:
        self._missing = needed
        self._opened = asyncio.Event()

    def arrived(self) -> None:
        """Count a draft that has a solution."""
        self._missing -= 1
        if self._missing <= 0:
            self._opened.set()

    async def race(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Return the result of `work`, or None if the gate opens first.

        Work that is cut off has been cancelled, and its request ended, when this returns.
        """
        task = asyncio.ensure_future(work)
        opened = asyncio.ensure_future(self._opened.wait())
        try:
            await asyncio.wait({task, opened}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            opened.cancel()
            await asyncio.gather(task, opened, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Drafter:
    """Asks for one attempt at the problem; a failure becomes part of the draft."""

    toolbox: Toolbox
    gates: WeakValueDictionary[object, Gate] = field(default_factory=WeakValueDictionary)
    """Gates of all rounds in this process; a gate is forgotten with its last draft."""

    async def __call__(self, state: DraftTask, *, runtime: Runtime[PDRConfig]) -> dict[str, object]:
        """Return the draft and what it cost."""
        shared = read_shared("problem", "config", "workspaces", "run", "contested")
        config = config_of(shared)
        run, index, workspaces = shared.get("run", ""), state["index"], shared.get("workspaces", [])
        ask = self.toolbox.asker(
            "drafter",
            state["round"],
            config,
            run=run,
            part=str(index),
            role="contested" if shared.get("contested") else "drafter",
        )
        gate = self.gates.setdefault(run_key(run), Gate(drafts_awaited(config, state["round"])))
        template, values = attempt(ask, shared["problem"], workspaces, index)
        draft = _blank(state, ask.sampling(template, index).seed)
        call = ask.one(template, index=index, **values)
        try:
            reply = await (gate.race(call) if config.quorum < 1 else call)
        except CallError as error:
            _fail(draft, "failed", str(error))
            draft["refused"] = error.status is not None and not isinstance(error, TransientError)
        else:
            if reply is None:
                _fail(draft, "cut", f"a quorum of {config.quorum:g} was in before it")
            else:
                await self._fill(draft, reply, ask)
        if draft["error"] is None:
            await weigh(ask, self.toolbox.extensions.of(config).judge, draft, shared["problem"])
        row = charged(ask.meter)
        draft["seconds"] = round(row["seconds"], 3)
        if draft["error"] is None:
            gate.arrived()
        tell(
            runtime.stream_writer,
            DraftEvent(
                event="draft",
                round=draft["round"],
                index=draft["index"],
                answer=draft["answer"],
                error=draft["error"],
                detail=draft["detail"],
                tokens=b_total([row]),
                seconds=draft["seconds"],
            ),
        )
        return {"drafts": [draft], "ledger": [row]}

    async def _fill(self, draft: Draft, reply: Reply, ask: Asker) -> None:
        draft["tokens"] = reply.usage.completion
        draft["truncated"] = reply.truncated
        if reply.finish_reason == LOOP:
            draft["loop"] = True
        if not reply.solution.strip():
            if reply.finish_reason == LOOP:
                _fail(draft, "truncated", "the model repeated itself before a solution was begun")
            elif reply.truncated:
                _fail(draft, "truncated", "max_tokens were spent before a solution was begun")
            else:
                _fail(draft, "empty", "the model answered nothing")
            return
        if signals := logprob_signals(reply.logprobs):
            draft["signals"] = signals
        draft["answer"] = answer_kind(ask.config.answer).extract(reply.solution)
        limit, counter = ask.config.solution_tokens, self.toolbox.models.for_run(ask.config).counter
        # The server's count holds for its own model, and other models may read the draft.
        counted = counter is ask.client.counter and not reply.usage.estimated
        if counted and reply.usage.completion <= limit:
            draft["solution"] = reply.solution
            return
        keep = closing_line(draft["answer"])
        draft["solution"] = await clip(reply.solution, limit, counter, keep=keep)


def _blank(task: DraftTask, seed: int) -> Draft:
    return Draft(
        round=task["round"],
        index=task["index"],
        solution="",
        answer=None,
        tokens=0,
        truncated=False,
        error=None,
        detail="",
        seed=seed,
        seconds=0.0,
    )


def _fail(draft: Draft, error: DraftError, detail: str) -> None:
    draft["error"] = error
    draft["detail"] = detail
