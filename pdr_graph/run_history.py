"""Reads a run back from its checkpoints: each round's drafts and workspaces, and how it ended."""

from dataclasses import dataclass, field
from datetime import datetime

from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableConfig
from langgraph._internal._constants import CONFIG_KEY_CHECKPOINTER
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import StateSnapshot

from pdr_graph.budget import Ledger, merge_rows
from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import OtherGraphError, UnknownThreadError
from pdr_graph.graph import build_graph
from pdr_graph.run import with_input
from pdr_graph.state import PDRState, is_run, merge_drafts, state_of
from pdr_graph.strategies import width_of
from pdr_graph.types import Draft, RunRecord, Solution, Verdict, Workspace


@dataclass(slots=True)
class RoundView:
    """One parallel round: its drafts, and the workspaces made of them."""

    round: int
    width: int
    drafts: list[Draft] = field(default_factory=list)
    """Finished drafts; of a round in progress, those that are in."""
    workspaces: list[Workspace] = field(default_factory=list)
    """Empty where the run ended on the drafts themselves, or they are not distilled yet."""


@dataclass(frozen=True, slots=True)
class RunHistory:
    """One run, finished or not."""

    thread_id: str
    problem: str
    config: PDRConfig
    record: RunRecord | None
    """None if the run was interrupted before its first step was done."""
    rounds: list[RoundView]
    solution: Solution | None
    verdict: Verdict | None
    notes: list[str]
    ledger: Ledger
    next: tuple[str, ...]
    """Nodes that a resume would start with; empty for a finished run."""
    updated_at: datetime
    questions: tuple[object, ...] = ()
    """What the run asks a person, and waits for; empty where it does not wait."""
    namespace: str = ""
    """The run's place in its thread: empty, or `node:task` parts joined by `|` in another graph."""


async def history(thread_id: str, *, checkpointer: BaseCheckpointSaver[str]) -> RunHistory:
    """Read a run back, finished or not; in a thread of another graph, the last run inside.

    Raises:
        UnknownThreadError: nothing is recorded under this thread.
        OtherGraphError: it holds a run of another graph, and none of ours inside.
    """
    # Reading a state needs the shape of the graph, never its model.
    graph = build_graph(FakeListChatModel(responses=[""]), checkpointer=checkpointer)
    place = RunnableConfig(configurable={"thread_id": thread_id})
    root = await graph.aget_state(place)
    if not root.created_at:
        raise UnknownThreadError(thread_id)
    namespace = "" if is_run(root) else await _last_inside(thread_id, checkpointer)
    if namespace:
        # Given a checkpointer here, LangGraph reads the namespace as it is. Otherwise it would look
        # for a subgraph of that name, which only the graph around it has.
        place["configurable"] |= {"checkpoint_ns": namespace, CONFIG_KEY_CHECKPOINTER: checkpointer}
    snapshots = [snapshot async for snapshot in graph.aget_state_history(place)]
    latest = snapshots[0]
    state = await with_input(_with_pending(latest), latest.config, checkpointer)
    config = make_config(**state.get("config", {}))
    return RunHistory(
        thread_id=thread_id,
        problem=state.get("problem", ""),
        config=config,
        record=state.get("record"),
        rounds=_rounds(snapshots, config),
        solution=state.get("solution"),
        verdict=state.get("verdict"),
        notes=list(state.get("notes", [])),
        ledger=Ledger(tuple(state.get("ledger", []))),
        next=tuple(dict.fromkeys(latest.next)),
        updated_at=datetime.fromisoformat(latest.created_at or ""),
        questions=tuple(each.value for each in latest.interrupts),
        namespace=namespace,
    )


async def _last_inside(thread_id: str, checkpointer: BaseCheckpointSaver[str]) -> str:
    """Return the namespace of the run that was written last inside another graph."""
    last = max(
        [
            (found.checkpoint["ts"], str(found.config["configurable"]["checkpoint_ns"]))
            async for found in checkpointer.alist({"configurable": {"thread_id": thread_id}})
            if "record" in found.checkpoint["channel_values"]
        ],
        default=None,
    )
    if last is None:
        raise OtherGraphError(thread_id)
    return last[1]


def _rounds(snapshots: list[StateSnapshot], config: PDRConfig) -> list[RoundView]:
    """Collect each round's drafts and workspaces; later checkpoints win over earlier ones.

    Only the latest run of the thread counts, which may have been used before.
    """
    rounds: dict[int, RoundView] = {}
    for snapshot in reversed(snapshots):
        state = _with_pending(snapshot)
        number = state.get("round", 0)
        if number == 0:
            rounds.clear()
            continue
        view = rounds.setdefault(number, RoundView(number, width_of(config, number)))
        drafts = [draft for draft in state.get("drafts", []) if draft["round"] == number]
        view.drafts = drafts or view.drafts
        if "distiller" not in snapshot.next and "drafter" not in snapshot.next:
            view.workspaces = state.get("workspaces", []) if view.drafts else []
    return [rounds[number] for number in sorted(rounds)]


def _with_pending(snapshot: StateSnapshot) -> PDRState:
    """Return a snapshot's state with what finished drafters of its next step have written."""
    state = state_of(snapshot.values)
    for task in snapshot.tasks:
        result = task.result if isinstance(task.result, dict) else {}
        if task.name == "drafter" and result:
            state["drafts"] = merge_drafts(state.get("drafts", []), result["drafts"])
            state["ledger"] = merge_rows(state.get("ledger", []), result["ledger"])
    return state
