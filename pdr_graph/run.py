"""Runs the graph on a problem, durably: killed at any moment, a run is resumed where it was.

Checkpoints are written with durability `sync`: a super-step starts only once the one before it is
stored, so that losing the store stops the run instead of losing its answer.

What a run answered and what it cost.

What a run was asked for, where it was killed before its first step wrote that into its state.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphDrained
from langgraph.graph import START
from langgraph.runtime import RunControl
from langgraph.types import StateSnapshot

from pdr_graph.budget import Ledger, elapsed_s
from pdr_graph.config import PDRConfig, changed_fields, make_config
from pdr_graph.errors import (
    ConfigChangedError,
    ConfigError,
    ContextWindowError,
    DrainedError,
    OtherGraphError,
    ThreadExistsError,
    UnknownThreadError,
)
from pdr_graph.events import log_event
from pdr_graph.extensions import Extensions
from pdr_graph.graph import PDRGraph, build_graph, max_supersteps
from pdr_graph.llm.client import ModelClient
from pdr_graph.prompts import Prompts
from pdr_graph.state import PDRState, ProblemInput, config_of, is_run, owes_drafts, state_of
from pdr_graph.trace import Trace
from pdr_graph.types import Verdict


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run."""

    thread_id: str
    config: PDRConfig
    answer: str | None
    """The final answer as extracted; None if the solution states none."""
    solution: str
    verdict: Verdict
    ledger: Ledger
    notes: tuple[str, ...]
    """Sentences on what the run did otherwise than planned, and why."""
    seconds: float
    """Wall-clock time; for a resumed run the work before the interruption is added."""
    state: PDRState
    """The final state, whole."""

    @classmethod
    def of_state(cls, thread_id: str, state: PDRState, seconds: float) -> "Result":
        """Read a finished run's state."""
        solution, verdict = state["solution"], state["verdict"]
        assert solution is not None  # set before the graph can end
        assert verdict is not None
        return cls(
            thread_id=thread_id,
            config=config_of(state),
            answer=solution["answer"],
            solution=solution["text"],
            verdict=verdict,
            ledger=Ledger(tuple(state.get("ledger", []))),
            notes=tuple(state.get("notes", [])),
            seconds=seconds,
            state=state,
        )

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return the object that `pdr-graph solve --json` prints."""
        return {
            "thread_id": self.thread_id,
            "preset": self.config.preset,
            "answer": self.answer,
            "solution": self.solution,
            "verdict": dict(self.verdict),
            "ledger": self.ledger.to_json(),
            "seconds": round(self.seconds, 3),
        }


async def with_input(
    state: PDRState, snapshot: StateSnapshot, checkpointer: BaseCheckpointSaver[str]
) -> PDRState:
    """Return a snapshot's state, with problem and config of the input that it has yet to take.

    LangGraph stores a run's input as a checkpoint of its own, outside of the state, and takes it
    over in a step without a node.

    Args:
        state: Of the snapshot.
        snapshot: The latest of its thread.
        checkpointer: Where it was read from.
    """
    if "config" in state:
        return state
    found = await checkpointer.aget_tuple(snapshot.config)
    given = found.checkpoint["channel_values"].get(START) if found is not None else None
    return {**state_of(given), **state} if isinstance(given, dict) else state


OnEvent = Callable[[dict[str, Any]], None]
"""Receives progress as plain data: `round`, `draft`, `workspace`, `finish`, `solution`,
`verdict` and `note` events, each under its name in `event`; `chunk` events where asked for."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Optional parts of a run, which `solve` and `resume` share."""

    extensions: Extensions | None = None
    prompts: Prompts | None = None
    trace: Trace | None = None
    on_event: OnEvent | None = None
    control: RunControl | None = None
    """`control.request_drain()` stops the run at the next super-step, to be resumed."""
    stream_answer: bool = False
    """Whether `chunk` events tell the refinement while the model writes it: `attempt`, `thought`
    and `text` of each piece. A further attempt, or a rejected solution, begins it anew."""


async def solve(
    problem: str,
    config: PDRConfig | None = None,
    *,
    model: BaseChatModel | ModelClient,
    checkpointer: BaseCheckpointSaver[str] | None = None,
    thread_id: str | None = None,
    parts: Parts | None = None,
) -> Result:
    """Run the method on one problem.

    Args:
        problem: The task, in plain text or Markdown.
        config: None is `PDRConfig()`.
        model: Any LangChain chat model; share one `ModelClient` between runs of a process.
        checkpointer: Where the run is kept; without one it cannot be resumed.
        thread_id: Names the run; None makes one up.
        parts: Extensions, prompts, trace, progress and stop control.

    Raises:
        ConfigError: the request cannot be carried out as asked.
        ThreadExistsError: the thread holds a run already.
        ContextWindowError: prompt and completion do not fit the model, found before any draft.
        QuorumError: too few drafts of a round succeeded; the run can be resumed.
        CallError: a call that the run cannot do without failed; the run can be resumed.
        DrainedError: the run was asked to stop; it can be resumed.
    """
    parts, config = parts or Parts(), config or PDRConfig()
    if not problem.strip():
        raise ConfigError("the problem is empty; state the task to be solved")
    (parts.extensions or Extensions()).check(config)
    graph = _graph(model, checkpointer, parts)
    thread_id = thread_id or new_thread_id()
    if checkpointer is not None and (await graph.aget_state(_run(thread_id))).created_at:
        raise ThreadExistsError(thread_id)
    entry = ProblemInput(problem=problem, config=config.model_dump(mode="json"))
    try:
        return await _drive(
            graph, thread_id, entry, config, parts, durable=checkpointer is not None
        )
    except (ConfigError, ContextWindowError):
        # Refused before its first step was done: the thread must be free for the corrected run.
        if checkpointer is not None and not await _has_opened(graph, thread_id):
            await checkpointer.adelete_thread(thread_id)
        raise


async def resume(
    thread_id: str,
    *,
    model: BaseChatModel | ModelClient,
    checkpointer: BaseCheckpointSaver[str],
    changes: dict[str, object] | None = None,
    parts: Parts | None = None,
) -> Result:
    """Go on with a run that was killed, stopped or failed; finished drafts are not asked again.

    A run that has ended is returned as it ended, without any call.

    Args:
        thread_id: The run.
        model: The model that the run was started with.
        checkpointer: Where the run is kept.
        changes: Config fields that the caller insists on; anything but the record is refused.
        parts: As for `solve`.

    Raises:
        UnknownThreadError: nothing is recorded under this thread.
        OtherGraphError: what is recorded there is a run of another graph.
        ConfigChangedError: `changes`, the model or the prompts differ from the record.
        QuorumError, CallError, DrainedError: as for `solve`.
    """
    parts = parts or Parts()
    graph = _graph(model, checkpointer, parts)
    snapshot = await graph.aget_state(_run(thread_id))
    if not snapshot.created_at:
        raise UnknownThreadError(thread_id)
    if not is_run(snapshot):
        raise OtherGraphError(thread_id)
    state = await with_input(state_of(snapshot.values), snapshot, checkpointer)
    config = make_config(**state.get("config", {}))
    _refuse_changes(thread_id, state, config, changes or {}, graph_model(model), parts)
    # Nothing is next either when the last step's writes are stored and its checkpoint is not.
    if not snapshot.next and state.get("phase") == "done":
        return Result.of_state(thread_id, state, elapsed_s(state.get("ledger", [])))
    if owes_drafts(snapshot):
        # Planning the round anew sends drafters for the missing drafts alone.
        await graph.aupdate_state(_run(thread_id), {"phase": "draft"}, as_node="plan")
    return await _drive(graph, thread_id, None, config, parts, durable=True)


def new_thread_id() -> str:
    """Return a name for a run that no other has."""
    return uuid.uuid4().hex[:12]


def graph_model(model: BaseChatModel | ModelClient) -> str:
    """Return the model's name, as the record of a run states it."""
    return (model if isinstance(model, ModelClient) else ModelClient(model)).name


async def _drive(
    graph: PDRGraph,
    thread_id: str,
    entry: ProblemInput | None,
    config: PDRConfig,
    parts: Parts,
    *,
    durable: bool,
) -> Result:
    """Run the graph to its end, or to the error that stopped it."""
    started = perf_counter()
    run: RunnableConfig = {**_run(thread_id), "recursion_limit": max_supersteps(config)}
    state: PDRState = {}
    before = 0.0
    log_event(thread_id, {"event": "begin", "preset": config.preset, "resumed": entry is None})
    try:
        async for part in graph.astream(
            entry,
            run,
            context=config if entry is not None else None,
            stream_mode=["custom", "values"],
            control=parts.control,
            durability="sync" if durable else None,
            version="v2",
        ):
            if part["type"] == "values":
                if not state and entry is None:
                    before = elapsed_s(part["data"].get("ledger", []))
                state = state_of(part["data"])
            elif part["type"] == "custom":
                log_event(thread_id, part["data"])
                if parts.on_event is not None:
                    parts.on_event(part["data"])
    except BaseException as error:
        log_event(thread_id, {"event": "stopped", "error": type(error).__name__})
        if isinstance(error, GraphDrained):
            raise DrainedError(thread_id) from error
        raise
    result = Result.of_state(thread_id, state, before + perf_counter() - started)
    log_event(
        thread_id,
        {"event": "end", "seconds": round(result.seconds, 3), "b_total": result.ledger.b_total},
    )
    return result


def _graph(
    model: BaseChatModel | ModelClient,
    checkpointer: BaseCheckpointSaver[str] | None,
    parts: Parts,
) -> PDRGraph:
    return build_graph(
        model,
        checkpointer=checkpointer,
        extensions=parts.extensions,
        prompts=parts.prompts,
        trace=parts.trace,
        stream_answer=parts.stream_answer,
    )


def _run(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def _refuse_changes(
    thread_id: str,
    state: PDRState,
    config: PDRConfig,
    changes: dict[str, object],
    model_name: str,
    parts: Parts,
) -> None:
    changed = changed_fields(config, make_config(**{**config.model_dump(), **changes}))
    record = state.get("record")
    if record is not None:
        if record["model"] != model_name:
            changed.append(f"model ({record['model']!r}, now {model_name!r})")
        if parts.prompts is not None and record["prompts"] != parts.prompts.of_run(config).hashes():
            changed.append("set of prompts")
    if changed:
        raise ConfigChangedError(thread_id, changed)


async def _has_opened(graph: PDRGraph, thread_id: str) -> bool:
    return "record" in (await graph.aget_state(_run(thread_id))).values
