"""What happened in a run, read back from its checkpoints."""

from dataclasses import dataclass, field
from datetime import datetime

from langchain_core.language_models import FakeListChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import StateSnapshot

from pdr_graph.budget import Ledger, merge_rows
from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import UnknownThreadError
from pdr_graph.graph import build_graph
from pdr_graph.state import PDRState, merge_drafts, state_of
from pdr_graph.strategies import width_of
from pdr_graph.types import Draft, RunRecord, Solution, Verdict, Workspace


@dataclass(slots=True)
class RoundView:
    """One parallel round: what was drafted, and what was kept of it."""

    round: int
    width: int
    drafts: list[Draft] = field(default_factory=list)
    """Finished drafts, those of a round in progress included."""
    workspaces: list[Workspace] = field(default_factory=list)
    """What was distilled from them; empty where the run ended on the drafts themselves."""


@dataclass(frozen=True, slots=True)
class RunHistory:
    """One run, whole."""

    thread_id: str
    problem: str
    config: PDRConfig
    record: RunRecord | None
    """None where the run was interrupted before its first step was done."""
    rounds: list[RoundView]
    solution: Solution | None
    verdict: Verdict | None
    notes: list[str]
    ledger: Ledger
    next: tuple[str, ...]
    """Nodes that a resume would start with; empty for a finished run."""
    updated_at: datetime


async def history(thread_id: str, *, checkpointer: BaseCheckpointSaver[str]) -> RunHistory:
    """Read a run back, finished or not.

    Raises:
        UnknownThreadError: nothing is recorded under this thread.
    """
    # Reading state needs the graph's shape, never its model.
    graph = build_graph(FakeListChatModel(responses=[""]), checkpointer=checkpointer)
    snapshots = [
        snapshot
        async for snapshot in graph.aget_state_history({"configurable": {"thread_id": thread_id}})
    ]
    if not snapshots:
        raise UnknownThreadError(thread_id)
    latest = snapshots[0]
    state = _with_pending(latest)
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
    )


def _rounds(snapshots: list[StateSnapshot], config: PDRConfig) -> list[RoundView]:
    """Collect each round's drafts and workspaces, oldest checkpoint first, so that later ones win.

    Only checkpoints of the latest run count: a thread may have been used before.
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
    """Return a snapshot's state with what finished tasks of its next step have already written."""
    state = state_of(snapshot.values)
    for task in snapshot.tasks:
        result = task.result if isinstance(task.result, dict) else {}
        if task.name == "drafter" and result:
            state["drafts"] = merge_drafts(state.get("drafts", []), result["drafts"])
            state["ledger"] = merge_rows(state.get("ledger", []), result["ledger"])
    return state
