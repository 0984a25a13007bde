"""One call of the graph: whether it opens a run or continues one, and where the run is kept.

LangGraph calls a graph with new input, or with None to continue. A run is continued by None, and by
a parent graph that continues with the same problem; any other input opens a new run, whatever the
thread had begun before.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import (
    CONFIG_KEY_CHECKPOINT_MAP,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_REPLAY_STATE,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SCRATCHPAD,
    CONFIG_KEY_TASK_ID,
    INTERRUPT,
)
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.graph import START
from langgraph.types import Command
from pydantic import BaseModel

from pdr_graph.config import PDRConfig
from pdr_graph.llm.tokens import wellformed
from pdr_graph.llm.usage import Charges
from pdr_graph.types import LedgerRow

KEY = "__pdr_invocation"
"""Where a call's `Invocation` is in its nodes' config; LangGraph stores no key that begins so."""
SUBRUN = "__pdr_subrun"
"""Where a call's `Subrun` is in its config, if `pdr_node` or `as_tool` makes it."""

Keys = dict[str, Any]
"""The `configurable` of a config: LangGraph's own keys, and what the user adds."""
_WHOLE = {"preset", "widths", "kappa"}
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class Subrun:
    """What `pdr_node` or `as_tool` passes to the graph that it calls, and what it gets back."""

    ledger: str | None
    """Channel of the calling graph that the run is charged to; None if it has none."""
    message_id: str = ""
    """Id of the message under which the answer was streamed; empty where there is none."""


@dataclass(slots=True)
class Invocation:
    """One call of the graph, as its nodes see it."""

    opens: bool = False
    """Whether its first step must open a run; False once it has, or if the call continues a run."""
    run: str = ""
    """Name of the run, once it is known."""
    abandoned: list[LedgerRow] = field(default_factory=list)
    """Cost of the earlier run that this call ends."""
    before: list[LedgerRow] = field(default_factory=list)
    """Cost of the earlier calls of the run that this call continues."""
    context: Any = None  # Any: whatever the graph around declares
    """Context of the graph around this one; None at the root."""
    handed: PDRConfig | None = None
    """The config that the caller gives in Python: the code that it names may be imported. None if
    there is none, or if it came to a server with a request."""
    ledger: str | None = None
    """Channel of the graph around this one that takes the cost; None if it has none."""
    around: list[str] | None = None
    """Namespaces of the graphs around this one that share the channel; None until looked up."""
    caller: RunnableConfig | None = None
    """Config of the node that will return the run as one row; None where it returns all rows."""
    charges: Charges = field(default_factory=Charges)
    worked_s: float = 0.0
    """Seconds that earlier calls have worked on the run."""
    message_id: str = ""
    """Id of the model's message that is the solution; empty if no single message is."""
    b_total: int | None = None
    """Cost of the whole run, once it has ended."""

    @classmethod
    def current(cls) -> "Invocation":
        """Return the call that the calling node belongs to."""
        config = var_child_runnable_config.get() or {}
        found = config.get("configurable", {}).get(KEY)
        return found if isinstance(found, cls) else cls()


def is_nested(keys: Mapping[str, Any]) -> bool:
    """Tell whether the graph is called by a node of another graph."""
    return CONFIG_KEY_TASK_ID in keys


def place(keys: Mapping[str, Any]) -> tuple[str, str]:
    """Return the thread and the namespace of a call."""
    return str(keys.get("thread_id") or ""), str(keys.get("checkpoint_ns") or "")


def continues(
    input: object, keys: Mapping[str, Any], saved: CheckpointTuple | None, run_id: object
) -> bool:
    """Tell whether a call continues what is saved.

    By LangGraph's rules, the input None continues, and so does a run that a server repeats under
    its id. A parent that continues, or retries its node, calls the node with the same state again.
    So the same problem continues there, and a different problem is always a new question.

    Args:
        input: What the graph is called with.
        keys: The call's `configurable`.
        saved: The latest checkpoint of the call's place; None if there is none.
        run_id: The id that a server gives its runs; None without a server.
    """
    if input is None or isinstance(input, Command):
        return True
    if saved is None or keys.get(CONFIG_KEY_REPLAY_STATE):
        return False
    if not is_nested(keys):
        return run_id is not None and run_id == saved.metadata.get("run_id")
    problem = input.get("problem") if isinstance(input, Mapping) else None
    same = isinstance(problem, str) and wellformed(problem).strip() == _problem(saved)
    # The namespace of a task is its own, so what stopped there is what is called again.
    again = ":" in place(keys)[1] or _attempt(keys) > 1
    unfinished = saved.checkpoint["channel_values"].get("phase") != "done"
    return same and (bool(keys.get(CONFIG_KEY_RESUMING)) or (again and unfinished))


def _problem(saved: CheckpointTuple) -> str:
    values = saved.checkpoint["channel_values"]
    given = values.get(START)
    asked = given.get("problem", "") if isinstance(given, Mapping) else values.get("problem", "")
    return wellformed(str(asked)).strip()


def has_new_input(saved: CheckpointTuple, *, replayed: bool) -> bool:
    """Tell whether the first step of the thread's last input is still owed: it is no run yet.

    The first step writes problem and record together. So a problem that is newer than the record is
    an input, or an edit.

    Args:
        saved: Where the call goes on.
        replayed: Whether the caller names this checkpoint. LangGraph then repeats every step after
            it, even if the step's writes are stored.
    """
    taken = any(channel == "record" for _, channel, _ in saved.pending_writes or [])
    if taken and not replayed:
        return False  # the step is done, and only its checkpoint is owed
    written = {
        channel: int(str(version).partition(".")[0])  # what follows the count is random
        for channel, version in saved.checkpoint["channel_versions"].items()
        if channel in {"problem", "record"}
    }
    newer = written.get("problem", 0) > written.get("record", 0)
    return newer or saved.metadata.get("source") == "input"


def as_dict(input: Any) -> Any:  # Any: as LangGraph takes it
    """Return a state by the names of its fields, also that of a dataclass or a pydantic model."""
    if isinstance(input, BaseModel):
        return {name: getattr(input, name) for name in type(input).model_fields}
    if is_dataclass(input) and not isinstance(input, type | Command):
        return {each.name: getattr(input, each.name) for each in fields(input)}
    return input


def input_of(input: Any, *, nested: bool, context: object) -> Any:  # Any: as LangGraph takes it
    """Return the graph's own input: the problem, and the config if one is meant for it.

    Called as a node, the graph gets its parent's whole state, whose `config` may be of another
    kind. So it counts only if it has the fields of a `PDRConfig`. At the root, a context is put in
    the input as the config: LangGraph stores the input but not the context, and may be stopped
    before the first step.
    """
    given = as_dict(input)
    if not isinstance(given, Mapping):
        return given
    found = {name: given[name] for name in ("problem",) if name in given}
    config = given.get("pdr_config")
    if config is None:
        config = given.get("config")
        if nested and not (isinstance(config, Mapping) and config.keys() >= _WHOLE):
            return found
    if config is None and not nested:
        config = context.model_dump(mode="json") if isinstance(context, PDRConfig) else context
    return {**found, "config": config} if isinstance(config, Mapping) else found


def outer_context(keys: Mapping[str, Any]) -> Any:  # Any: as `Invocation.context`
    """Return the context of the graph around this call."""
    return getattr(keys.get(CONFIG_KEY_RUNTIME), "context", None) if is_nested(keys) else None


_OF_SERVERS = ("langgraph_request_id", "assistant_id", "langgraph_api_url", "langgraph_api_version")
"""Keys that LangGraph's servers add to the config of requested runs."""


def handed(config: RunnableConfig, context: object, around: object) -> PDRConfig | None:
    """Return the config that a caller in this process hands in; None if a server was asked.

    Args:
        config: What the call is configured with.
        context: The call's own; a server hands over a mapping.
        around: Context of the graph around it. LangGraph may have made it from a request to a
            server, and a node may pass it on.
    """
    if isinstance(context, PDRConfig) and context != around:
        return context
    told = {**config.get("metadata", {}), **config.get("configurable", {})}
    asked = any(name in told for name in _OF_SERVERS)
    return around if isinstance(around, PDRConfig) and not asked else None


def saver_of(keys: Mapping[str, Any], own: object) -> BaseCheckpointSaver[str] | None:
    """Return the checkpointer that keeps a call: its own, or that of the graph around it."""
    found = None if own is False else keys.get(CONFIG_KEY_CHECKPOINTER) or own
    if keys.get("thread_id") is None:
        return None
    return found if isinstance(found, BaseCheckpointSaver) else None


def _execution_info(keys: Mapping[str, Any]) -> object:
    return getattr(keys.get(CONFIG_KEY_RUNTIME), "execution_info", None)


def _attempt(keys: Mapping[str, Any]) -> int:
    """Return which attempt at the calling node this is, from 1; a `RetryPolicy` makes several."""
    return int(getattr(_execution_info(keys), "node_attempt", 1))


class _Recent(Generic[K, V]):
    """A mapping that forgets its oldest entries."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[K, V] = OrderedDict()

    def put(self, key: K, value: V) -> V:
        self._entries[key] = value
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
        return value

    def get(self, key: K) -> V | None:
        return self._entries.get(key)

    def pop(self, key: K) -> V | None:
        return self._entries.pop(key, None)


@dataclass(slots=True)
class _Claims:
    """The numbers of the subgraphs that one execution of a task has called."""

    numbers: list[int] = field(default_factory=list)
    attempt: int = 1
    free: list[int] = field(default_factory=list)
    """Numbers that the next calls of this attempt take again, before they draw new ones."""


class GraphCalls:
    """What the calls of one graph in this process must remember of one another."""

    def __init__(self) -> None:
        self._claims: _Recent[object, _Claims] = _Recent(4096)
        self._bills: _Recent[tuple[str, str], list[LedgerRow]] = _Recent(1024)

    def claimed(self, keys: Keys) -> Keys:
        """Claim the namespace of a nested call, before anything is awaited.

        LangGraph numbers the subgraphs of one task as they come. A further attempt at the task must
        find its subgraphs again, so it takes the same numbers in the same order. So does a node
        that calls the graph again after an error.
        """
        scratchpad = keys.get(CONFIG_KEY_SCRATCHPAD)
        if scratchpad is None:
            return keys
        execution, attempt = _execution(keys), _attempt(keys)
        claims = self._claims.get(execution) or self._claims.put(execution, _Claims())
        if attempt != claims.attempt:
            claims.attempt, claims.free = attempt, claims.numbers.copy()
        if claims.free:
            number = claims.free.pop(0)
        else:
            number = scratchpad.subgraph_counter()
            claims.numbers.append(number)
        return at(keys, str(number) if number else "")

    def release(self, keys: Keys) -> None:
        """Free the namespace of a call that failed, so that the next call continues there."""
        claims = self._claims.get(_execution(keys))
        last = place(keys)[1].rpartition("|")[2]
        number = int(last) if last.isdigit() else 0
        if claims and number in claims.numbers and number not in claims.free:
            claims.free.append(number)

    def failed(self, keys: Keys, rows: Iterable[LedgerRow]) -> None:
        """Remember the cost of a nested call that failed and that no checkpoint keeps."""
        if is_nested(keys):
            self._bills.put(place(keys), list(rows))

    def owed(self, keys: Keys) -> list[LedgerRow]:
        """Return the cost of earlier attempts at a nested call, and forget it."""
        return self._bills.pop(place(keys)) or []


def _execution(keys: Mapping[str, Any]) -> object:
    first = getattr(_execution_info(keys), "node_first_attempt_time", None)
    return keys.get(CONFIG_KEY_TASK_ID), first


def shared_place(keys: Keys) -> Keys:
    """Put a call in the namespace that all tasks of its node share, as `checkpointer=True` asks."""
    parts = place(keys)[1].split("|")
    return {**keys, "checkpoint_ns": "|".join(part.split(":")[0] for part in parts)}


def at(keys: Keys, part: str) -> Keys:
    """Put a nested call at a numbered place below its task; empty is the task's own place.

    LangGraph reads a part of the namespace that is all digits as such a number.
    """
    scratchpad = keys.get(CONFIG_KEY_SCRATCHPAD)
    namespace = "|".join(filter(None, (keys.get("checkpoint_ns"), part)))
    # Without this, LangGraph would add a number once more.
    fixed = scratchpad and replace(scratchpad, subgraph_counter=lambda: 0)
    return {**keys, "checkpoint_ns": namespace, CONFIG_KEY_SCRATCHPAD: fixed}


def saved_at(thread_id: str, namespace: str) -> RunnableConfig:
    """Return the config that reads the latest checkpoint of a place."""
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}


async def is_answered(
    saver: BaseCheckpointSaver[str] | None, keys: Mapping[str, Any], saved: CheckpointTuple
) -> bool:
    """Tell whether a person's answer without a name may be for this call.

    Of several calls in one task that ask, LangGraph shows the question of one, and hands the answer
    to whichever takes it first.
    """
    asked = _asked(saved, None)
    thread_id, own = place(keys)
    around = [each for each in keys.get(CONFIG_KEY_CHECKPOINT_MAP, {}) if each != own]
    if not asked or saver is None or not around:
        return True
    outside = await saver.aget_tuple(saved_at(thread_id, max(around, key=len)))
    return outside is None or bool(asked & _asked(outside, keys[CONFIG_KEY_TASK_ID]))


def _asked(saved: CheckpointTuple, task: str | None) -> set[str]:
    """Return the ids of the questions that wait at a checkpoint; None is those of all tasks."""
    return {
        each.id
        for of, channel, value in saved.pending_writes or []
        if channel == INTERRUPT and task in {None, of}
        for each in value
    }


def without_answer(keys: Keys) -> Keys:
    """Hide from a call a person's answer that names no question."""
    scratchpad = keys[CONFIG_KEY_SCRATCHPAD]
    kept = replace(scratchpad, get_null_resume=lambda consume=False: None)
    return {**keys, CONFIG_KEY_SCRATCHPAD: kept}
