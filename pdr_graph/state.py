"""The state of a run: what its next step must remember.

It stays bounded: the drafts of one round, workspaces of at most kappa tokens, one ledger row per
super-step. So the size of a checkpoint depends on M and kappa and not on the number of rounds. What
the drafters of a round share is read from the state, since every argument of a `Send` is stored
twice per branch.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic makes schemas of no other before Python 3.12

from pdr_graph.budget import merge_rows
from pdr_graph.config import PDRConfig, make_config, num_rounds, width_of
from pdr_graph.errors import ConfigError, DamagedRunError
from pdr_graph.types import Draft, LedgerRow, RunRecord, Solution, Tally, Verdict, Workspace
from pdr_graph.validation import Fault

if TYPE_CHECKING:
    from langgraph.checkpoint.base import CheckpointTuple
    from langgraph.types import StateSnapshot

Phase = Literal["draft", "short", "finish", "done"]
"""What comes next: a round of drafts, those that a round still owes, the final call, or nothing."""


def merge_drafts(drafts: list[Draft], new: list[Draft]) -> list[Draft]:
    """Merge drafts by index; a later round replaces all drafts, a repeated draft only itself."""
    latest = max((draft["round"] for draft in [*drafts, *new]), default=0)
    merged = {draft["index"]: draft for draft in [*drafts, *new] if draft["round"] == latest}
    return [merged[index] for index in sorted(merged)]


class ProblemInput(TypedDict):
    """What a caller hands in."""

    problem: str
    config: NotRequired[dict[str, Any]]  # Any: PDRConfig as plain data
    """For callers without a context, and to resume a run that was killed in its first step."""


class PDRState(TypedDict, total=False):
    """One run."""

    run: str
    """Names this run of its thread; absent in runs of version 0.1."""
    problem: str
    config: dict[str, Any]  # Any: PDRConfig as plain data
    """The recorded `PDRConfig`, which `resume` reads; the graph's context is not checkpointed."""
    record: RunRecord
    problem_tokens: int
    """Length of the problem, in model tokens."""
    phase: Phase
    round: int
    """The current parallel round, 1-based; 0 before the first."""
    extra_rounds: int
    """Rounds granted because a solution was rejected."""
    drafts: Annotated[list[Draft], merge_drafts]
    """Those of the current round; cleared once they are distilled for another round."""
    workspaces: list[Workspace]
    """One that all next calls share, or one for each of them; empty before the first round."""
    tally: Tally | None
    """The answers of all rounds so far; None unless `PDRConfig.pool_rounds`."""
    contested: bool
    """Whether the drafts of the round before did not agree, so that the next ones are asked of
    another model; absent where no model is named for that."""
    consensus: str | None
    """The answer whose agreement ended the rounds early; None if nothing did."""
    solution: Solution | None
    verdict: Verdict | None
    notes: list[str]
    """Sentences on what the run did otherwise than planned, and why."""
    ledger: Annotated[list[LedgerRow], merge_rows]


class DraftTask(TypedDict):
    """The argument of one `Send`: which draft to make."""

    round: int
    index: int


def state_of(values: object) -> PDRState:
    """Return the values of a snapshot or stream, which LangGraph leaves untyped, as a state."""
    assert isinstance(values, dict)
    return cast(PDRState, dict(values))


def stored_state(values: Mapping[str, Any], thread_id: str) -> PDRState:  # Any: what was stored
    """Check the form of stored values, and return them as a state.

    The values are not trusted: anybody who can write to the store, or who hands over an exported
    run, may have made them.

    Raises:
        DamagedRunError: A field has not the form that this release reads.
    """
    try:
        _form().validate_python(values, strict=True)
    except ValidationError as error:
        raise DamagedRunError(thread_id, Fault.of(error).sentence()) from None
    return cast(PDRState, dict(values))


def stored_config(state: PDRState, thread_id: str) -> PDRConfig:
    """Return the config that a stored run was asked for.

    Raises:
        DamagedRunError: It is no config of this release.
    """
    try:
        return make_config(**state.get("config", {}))
    except (ConfigError, TypeError) as error:
        raise DamagedRunError(thread_id, f"its config: {error}") from None


@contextmanager
def reading(thread_id: str) -> Iterator[None]:
    """Turn any error of reading a malformed run into one that names the run.

    Raises:
        DamagedRunError: In place of any error that is not one of the package.
    """
    try:
        yield
    # The reducers above run on pending writes before their form can be checked.
    except Exception as error:
        origin = type(error).__module__.partition(".")[0]
        if origin not in {"builtins", "langgraph"} or isinstance(error, OSError):
            raise
        why = f"it has the form of no run ({type(error).__name__}: {str(error)[:200]})"
        raise DamagedRunError(thread_id, why) from error


@cache
def _form() -> TypeAdapter[PDRState]:
    return TypeAdapter(PDRState)


def values_at_rest(saved: "CheckpointTuple") -> dict[str, Any] | None:  # Any: what was stored
    """Return the stored values of a run without a next step; None if it has one, or is no run.

    LangGraph keeps the next nodes in channels beside those of the state; a used one holds an empty
    list. It keeps the writes of a task as pending writes until its step is done. So a run that has
    ended can be read without its graph, which takes a second to load.
    """
    held = saved.checkpoint["channel_values"]
    values = {name: value for name, value in held.items() if name in PDRState.__annotations__}
    leads_on = any(held[name] != [] for name in held.keys() - values.keys())
    return None if leads_on or saved.pending_writes or "config" not in values else values


def is_run(snapshot: "StateSnapshot") -> bool:
    """Tell whether a thread holds a run of this graph and not of another.

    A run that has not taken its first step holds nothing yet, but has a next step of this graph.
    """
    return "config" in snapshot.values or bool(snapshot.next)


def config_of(state: PDRState) -> PDRConfig:
    """Return the recorded config.

    Raises:
        ConfigError: what was stored is no config.
    """
    return make_config(**state["config"])


def read_shared(*channels: str) -> PDRState:
    """Read state channels in a node that was reached by `Send`.

    It uses a private part of LangGraph (1.2), which `tests/test_state.py` pins.
    """
    # Imported late, so that readers of stored runs do not wait for LangGraph.
    from langgraph.config import get_config
    from langgraph.pregel._read import ChannelRead

    values: PDRState = ChannelRead.do_read(get_config(), select=list(channels))
    return values


def succeeded(state: PDRState) -> list[Draft]:
    """Return the drafts of the current round that have a solution, by index."""
    return [
        draft
        for draft in state.get("drafts", [])
        if draft["round"] == state["round"] and draft["error"] is None
    ]


def missing_drafts(state: PDRState) -> list[DraftTask]:
    """Return the drafts that the current round still owes; all of them in a new round."""
    present = {draft["index"] for draft in succeeded(state)}
    width = width_of(config_of(state), state["round"])
    return [
        DraftTask(round=state["round"], index=index)
        for index in range(width)
        if index not in present
    ]


def rounds_left(state: PDRState) -> int:
    """Return how many parallel rounds are still to come."""
    return num_rounds(config_of(state), state.get("extra_rounds", 0)) - state["round"]


def more_drafts(state: PDRState) -> int:
    """Return how many drafts the rounds still to come may bring."""
    config, done = config_of(state), state["round"]
    return sum(width_of(config, done + each) for each in range(1, rounds_left(state) + 1))


def next_width(state: PDRState) -> int:
    """Return how many calls read the workspaces made now: M of the next round, or 1."""
    return width_of(config_of(state), state["round"] + 1) if rounds_left(state) > 0 else 1
