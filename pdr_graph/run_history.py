"""Reads a run back from its checkpoints: each round's drafts and workspaces, and how it ended."""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast

from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import RunnableConfig
from langgraph._internal._constants import CONFIG_KEY_CHECKPOINTER
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import StateSnapshot

from pdr_graph.budget import Ledger, merge_rows
from pdr_graph.config import PDRConfig, width_of
from pdr_graph.errors import DamagedRunError, OtherGraphError, UnknownThreadError
from pdr_graph.graph import build_graph
from pdr_graph.run import ledger_of, with_input
from pdr_graph.state import (
    PDRState,
    is_run,
    merge_drafts,
    reading,
    stored_config,
    stored_state,
)
from pdr_graph.types import Draft, RunRecord, Solution, Verdict, Workspace

MOST_CHARACTERS: Final = 64_000_000
"""Most characters of all drafts and workspaces of a run: 100 times the paper's largest run."""
OBJECT: Final = 500
"""Characters that a draft or workspace counts for besides its text."""


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

    @property
    def models(self) -> str:
        """The model, and those of roles that have another, in a line; empty without a record."""
        if self.record is None:
            return ""
        own, named = self.record["model"], self.record.get("models", {})
        others = [f"{role}: {name}" for role, name in named.items() if name != own]
        return f"{own} ({', '.join(others)})" if others else own


async def history(thread_id: str, *, checkpointer: BaseCheckpointSaver[str]) -> RunHistory:
    """Read a run back, finished or not; in a thread of another graph, the last run inside.

    Raises:
        UnknownThreadError: nothing is recorded under this thread.
        OtherGraphError: it holds a run of another graph, and none of ours inside.
        DamagedRunError: the stored run is malformed.
    """
    with reading(thread_id):
        return await _history(thread_id, checkpointer)


async def _history(thread_id: str, checkpointer: BaseCheckpointSaver[str]) -> RunHistory:
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
    # It is a generator, which LangGraph's type does not say.
    pages = cast(AsyncGenerator[StateSnapshot, None], graph.aget_state_history(place))
    async with aclosing(pages) as snapshots:
        latest = await anext(snapshots)
        state = await with_input(_with_pending(latest, thread_id), latest.config, checkpointer)
        config = stored_config(state, thread_id)
        rounds = _Rounds(thread_id, config)
        goes_on = rounds.take(latest)
        while goes_on and (snapshot := await anext(snapshots, None)) is not None:
            goes_on = rounds.take(snapshot)
    return RunHistory(
        thread_id=thread_id,
        problem=state.get("problem", ""),
        config=config,
        record=state.get("record"),
        rounds=rounds.views(),
        solution=state.get("solution"),
        verdict=state.get("verdict"),
        notes=list(state.get("notes", [])),
        ledger=ledger_of(state),
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


class _Rounds:
    """Collects each round's drafts and workspaces from the snapshots of a run, the latest first.

    Only what is shown is held, never all states of a long run. Later checkpoints win over earlier
    ones.
    """

    def __init__(self, thread_id: str, config: PDRConfig) -> None:
        self._thread_id = thread_id
        self._config = config
        self._views: dict[int, RoundView] = {}
        self._distilled: set[int] = set()
        """Rounds whose workspaces are known."""
        self._made_of_drafts: set[int] = set()
        """Rounds whose drafts were still stored when their workspaces were made."""
        self._characters = 0

    def take(self, snapshot: StateSnapshot) -> bool:
        """Take a snapshot; return whether those before it belong to the run.

        Only the latest run of the thread counts; earlier runs may have used the thread.

        Raises:
            DamagedRunError: The snapshot is no state of a run, or the run holds too much text.
        """
        state = _with_pending(snapshot, self._thread_id)
        number = state.get("round", 0)
        if number == 0:
            return False
        if number not in self._views:
            self._views[number] = RoundView(number, width_of(self._config, number))
        view = self._views[number]
        if number not in self._distilled and not {"distiller", "drafter"} & set(snapshot.next):
            self._distilled.add(number)
            view.workspaces = state.get("workspaces", [])
            self._count(len(each["text"]) for each in view.workspaces)
        drafts = [draft for draft in state.get("drafts", []) if draft["round"] == number]
        if drafts and number in self._distilled:
            self._made_of_drafts.add(number)
        if drafts and not view.drafts:
            view.drafts = drafts
            self._count(len(draft["solution"]) for draft in drafts)
        return True

    def views(self) -> list[RoundView]:
        """Return the rounds in their order."""
        for view in self._views.values():
            if view.round not in self._made_of_drafts:
                view.workspaces = []
        return [self._views[number] for number in sorted(self._views)]

    def _count(self, lengths: Iterable[int]) -> None:
        self._characters += sum(OBJECT + length for length in lengths)
        if self._characters > MOST_CHARACTERS:
            why = f"its rounds hold more than {MOST_CHARACTERS:,} characters"
            raise DamagedRunError(self._thread_id, why)


def _with_pending(snapshot: StateSnapshot, thread_id: str) -> PDRState:
    """Return a snapshot's state with what finished drafters of its next step have written."""
    state = stored_state(snapshot.values, thread_id)
    for task in snapshot.tasks:
        result = task.result if isinstance(task.result, dict) else {}
        if task.name == "drafter" and result:
            new = stored_state(result, thread_id)
            state["drafts"] = merge_drafts(state.get("drafts", []), new.get("drafts", []))
            state["ledger"] = merge_rows(state.get("ledger", []), new.get("ledger", []))
    return state
