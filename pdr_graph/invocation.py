"""One call of the graph: whether it opens a run or continues one, where the run is kept, its bill.

LangGraph calls a graph with new input, or with None to continue. A run is continued by None, and by
a parent graph that continues with the same problem; any other input opens a new run, whatever the
thread had begun before.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config
from langgraph._internal._constants import (
    CONFIG_KEY_CHECKPOINT_MAP,
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_READ,
    CONFIG_KEY_REPLAY_STATE,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_RUNTIME,
    CONFIG_KEY_SCRATCHPAD,
    CONFIG_KEY_TASK_ID,
    NULL_TASK_ID,
)
from langgraph.channels import BinaryOperatorAggregate
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.graph import START
from langgraph.types import Command

from pdr_graph.budget import Ledger, merge_rows, with_part
from pdr_graph.llm.tokens import wellformed
from pdr_graph.llm.usage import Charges
from pdr_graph.types import LedgerRow

KEY = "__pdr_invocation"
"""Where a call's `Invocation` is in its nodes' config; LangGraph stores no key that begins so."""
SUBRUN = "__pdr_subrun"
"""Where a call's `Subrun` is in its config, if `pdr_node` or `as_tool` makes it."""
_MOST_TRIES = 100
"""To store a row beside others that do so at once; each try that fails lets another succeed."""
CHANNELS = ("pdr_ledger", "ledger")
"""Where a parent may keep what its runs of PDR cost."""

Keys = dict[str, Any]
"""The `configurable` of a config: LangGraph's own keys, and what the user adds."""
_WHOLE = {"preset", "widths", "kappa"}
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class Subrun:
    """What `pdr_node` or `as_tool` tells the graph that it calls, and is told."""

    message_id: str = ""
    """Id of the message under which the answer was streamed; empty where there is none."""


@dataclass(slots=True)
class Invocation:
    """One call of the graph, as its nodes see it."""

    opens: bool = False
    """Whether its first step is to open a run; False once that is done, or where it continues."""
    run: str = ""
    """Name of the run, once it is known."""
    abandoned: list[LedgerRow] = field(default_factory=list)
    """What the run has cost that this one puts an end to."""
    before: list[LedgerRow] = field(default_factory=list)
    """What earlier calls have cost of the run that this one continues."""
    context: Any = None  # Any: whatever the graph around declares
    """Context of the graph around this one; None at the root."""
    charges: Charges = field(default_factory=Charges)
    worked_s: float = 0.0
    """Seconds that earlier calls have worked on the run."""
    message_id: str = ""
    """Id of the model's message that is the solution; empty where no one message is."""
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

    By LangGraph's rules None does, and a run that a server repeats under its id. A node of a parent
    is called with the same state again, by a parent that continues or that retries its node. So a
    problem that is the same continues there, and another is a new question in any case.

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
    # The place of a task is for that task alone: what stopped there is what is called again.
    of_task = ":" in place(keys)[1]
    unfinished = saved.checkpoint["channel_values"].get("phase") != "done"
    return same and (bool(keys.get(CONFIG_KEY_RESUMING)) or (of_task and unfinished))


def _problem(saved: CheckpointTuple) -> str:
    values = saved.checkpoint["channel_values"]
    given = values.get(START)
    asked = given.get("problem", "") if isinstance(given, Mapping) else values.get("problem", "")
    return wellformed(str(asked)).strip()


def has_new_input(saved: CheckpointTuple) -> bool:
    """Tell whether the thread's last input has not become a run yet: its first step is owed.

    The first step writes problem and record together. So a problem that is newer is an input, or
    an edit.
    """
    if any(channel == "record" for _, channel, _ in saved.pending_writes or []):
        return False  # it has been taken, and its checkpoint is owed
    written = {
        channel: int(str(version).partition(".")[0])  # what follows the count is random
        for channel, version in saved.checkpoint["channel_versions"].items()
        if channel in {"problem", "record"}
    }
    newer = written.get("problem", 0) > written.get("record", 0)
    return newer or saved.metadata.get("source") == "input"


def unfinished_rows(saved: CheckpointTuple | None) -> list[LedgerRow]:
    """Return what a stopped run has cost, drafts of a super-step under way included."""
    if saved is None or saved.checkpoint["channel_values"].get("phase") in {None, "done"}:
        return []
    return _rows(saved)


async def keep_unfinished(saver: BaseCheckpointSaver[str], saved: CheckpointTuple) -> None:
    """Store what the tasks of a stopped super-step have cost: new input discards their writes."""
    known: list[LedgerRow] = saved.checkpoint["channel_values"].get("ledger", [])
    rows = [
        row
        for task, channel, value in saved.pending_writes or []
        if task != NULL_TASK_ID and channel == "ledger" and isinstance(value, list)
        for row in value
    ]
    await _write(saver, saved, "ledger", [row for row in rows if row not in known])


def _rows(saved: CheckpointTuple) -> list[LedgerRow]:
    rows: list[LedgerRow] = list(saved.checkpoint["channel_values"].get("ledger", []))
    for _, channel, value in saved.pending_writes or []:
        if channel == "ledger" and isinstance(value, list):
            rows = merge_rows(rows, value)
    return rows


def input_of(given: Mapping[str, Any], *, nested: bool) -> dict[str, Any]:
    """Return the graph's own input: the problem, and the config if one is meant for it.

    Called as a node, the graph is handed its parent's whole state, whose `config` may be another's:
    it counts where it has the fields of a `PDRConfig`.
    """
    found = {name: given[name] for name in ("problem",) if name in given}
    config = given.get("pdr_config")
    if config is None:
        config = given.get("config")
        if nested and not (isinstance(config, Mapping) and config.keys() >= _WHOLE):
            config = None
    return found if config is None else {**found, "config": config}


def outer_context(keys: Mapping[str, Any]) -> Any:  # Any: as `Invocation.context`
    """Return the context of the graph around this call."""
    return getattr(keys.get(CONFIG_KEY_RUNTIME), "context", None) if is_nested(keys) else None


def saver_of(keys: Mapping[str, Any], own: object) -> BaseCheckpointSaver[str] | None:
    """Return the checkpointer that a call uses: its own, or that of the graph around it."""
    found = None if own is False else keys.get(CONFIG_KEY_CHECKPOINTER) or own
    return found if isinstance(found, BaseCheckpointSaver) else None


def takes_ledger(keys: Mapping[str, Any], channel: str) -> bool | None:
    """Tell whether a channel of the calling graph is a ledger; None if there is no such channel.

    It uses a private part of LangGraph (1.2), which `tests/embed` pins.
    """
    channels = keys[CONFIG_KEY_READ].args[1] if CONFIG_KEY_READ in keys else {}
    if channel not in channels:
        return None
    found = channels[channel]
    return isinstance(found, BinaryOperatorAggregate) and found.operator is merge_rows


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
    index: int = 0
    """Numbers that this attempt has taken."""


class GraphCalls:
    """What the calls of one graph in this process must remember of one another."""

    def __init__(self) -> None:
        self._claims: _Recent[object, _Claims] = _Recent(4096)
        self._bills: _Recent[tuple[str, str], list[LedgerRow]] = _Recent(1024)

    def claimed(self, keys: Keys) -> Keys:
        """Claim the namespace of a nested call, before anything is awaited.

        LangGraph numbers the subgraphs of one task as they come. A further attempt at the task must
        find its subgraphs again, so it takes the same numbers in the same order.
        """
        scratchpad = keys.get(CONFIG_KEY_SCRATCHPAD)
        if scratchpad is None:
            return keys
        info = getattr(keys.get(CONFIG_KEY_RUNTIME), "execution_info", None)
        attempt = int(getattr(info, "node_attempt", 1))
        execution = keys[CONFIG_KEY_TASK_ID], getattr(info, "node_first_attempt_time", None)
        claims = self._claims.get(execution) or self._claims.put(execution, _Claims())
        if attempt != claims.attempt:
            claims.attempt, claims.index = attempt, 0
        if claims.index == len(claims.numbers):
            claims.numbers.append(scratchpad.subgraph_counter())
        number = claims.numbers[claims.index]
        claims.index += 1
        return at(keys, str(number) if number else "")

    def failed(self, keys: Keys, rows: Iterable[LedgerRow]) -> None:
        """Remember what a nested call has cost that failed and that no checkpoint keeps."""
        if is_nested(keys):
            self._bills.put(place(keys), list(rows))

    def owed(self, keys: Keys) -> list[LedgerRow]:
        """Return, once, what earlier attempts at a nested call have cost."""
        return self._bills.pop(place(keys)) or []


def at(keys: Keys, part: str) -> Keys:
    """Put a nested call at a numbered place below its task; empty is the task's own place.

    LangGraph takes a part of digits for such a number.
    """
    scratchpad = keys.get(CONFIG_KEY_SCRATCHPAD)
    namespace = "|".join(filter(None, (keys.get("checkpoint_ns"), part)))
    # It would be numbered once more below.
    fixed = scratchpad and replace(scratchpad, subgraph_counter=lambda: 0)
    return {**keys, "checkpoint_ns": namespace, CONFIG_KEY_SCRATCHPAD: fixed}


async def settle(
    saver: BaseCheckpointSaver[str], keys: Mapping[str, Any], charges: Charges
) -> list[LedgerRow]:
    """Store what calls have cost whose node's result was not stored, with the last checkpoint.

    They are writes of no task, which LangGraph applies when the run is continued or abandoned.

    Returns:
        All that the run has cost so far.
    """
    thread_id, namespace = place(keys)
    saved = await saver.aget_tuple(_at(thread_id, namespace))
    if saved is None:
        return charges.rows()
    rows = _rows(saved)
    lost = charges.lost(rows)
    await _write(saver, saved, "ledger", lost)
    return merge_rows(rows, lost)


async def settle_around(
    saver: BaseCheckpointSaver[str], keys: Mapping[str, Any], rows: list[LedgerRow]
) -> None:
    """Store what a run that stopped has cost so far in the ledgers of the graphs around it.

    The rows are those that the run itself will return, which then count instead.
    """
    channel = next((name for name in CHANNELS if takes_ledger(keys, name)), None)
    if channel is None:
        return
    thread_id, own = place(keys)
    for namespace in keys.get(CONFIG_KEY_CHECKPOINT_MAP, {}):
        if namespace == own:
            continue
        saved = await saver.aget_tuple(_at(thread_id, namespace))
        # A graph further out shares the channel with the graph that calls the run, or has none.
        if saved is not None and _is_ledger(saved.checkpoint["channel_values"].get(channel, [])):
            await _write(saver, saved, channel, rows)


def _at(thread_id: str, namespace: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}


def _is_ledger(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, Mapping) and "critical_tokens" in each for each in value
    )


async def _write(
    saver: BaseCheckpointSaver[str], saved: CheckpointTuple, channel: str, rows: list[LedgerRow]
) -> None:
    for _ in range(_MOST_TRIES if rows else 0):
        known = [
            (name, value)
            for task, name, value in saved.pending_writes or []
            if task == NULL_TASK_ID
        ]
        if (channel, rows) in known:
            return
        # A saver keeps the first write at each position: that of a run beside this one, perhaps.
        await saver.aput_writes(saved.config, [*known, (channel, rows)], NULL_TASK_ID)
        saved = await saver.aget_tuple(saved.config) or saved


def charge_of(config: RunnableConfig, run: str, rows: Iterable[LedgerRow]) -> LedgerRow:
    """Return a run as one row of the node and super-step that calls it, by that node's config.

    Runs side by side in one super-step merge into the longest of them, as calls of one step do.
    """
    keys, metadata = config.get("configurable", {}), config.get("metadata", {})
    around = str(metadata.get("langgraph_checkpoint_ns", "")).rpartition("|")[0]
    checkpoint = str(keys.get(CONFIG_KEY_CHECKPOINT_MAP, {}).get(around, ""))
    node, step = str(metadata.get("langgraph_node", "")), int(metadata.get("langgraph_step", 0))
    row = Ledger(tuple(rows)).total(node, step)
    return with_part(LedgerRow({**row, "run": checkpoint}), run)
