"""What calls have cost, kept with the checkpoints of the run and of the graphs around it.

A task that does not end writes nothing, and new input makes LangGraph drop the writes of stopped
tasks. So their costs are written under LangGraph's null task, whose writes always count.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph._internal._constants import (
    CONFIG_KEY_CHECKPOINT_MAP,
    CONFIG_KEY_READ,
    NULL_TASK_ID,
)
from langgraph.channels import BinaryOperatorAggregate
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple
from langgraph.graph import START

from pdr_graph.budget import merge_rows, totals_by_model, with_part
from pdr_graph.invocation import Invocation, as_dict, place, saved_at
from pdr_graph.llm.usage import Charges
from pdr_graph.types import LedgerRow

logger = logging.getLogger(__name__)

CHANNELS = ("pdr_ledger", "ledger")
"""Where a parent may keep what its runs of PDR cost."""
_END = ("phase", "done")
"""The channel that tells that a run has ended, and its value then."""
_MOST_TRIES = 100
"""Attempts to store a row while others are stored too; if one fails, another has succeeded."""


def takes_ledger(keys: Mapping[str, Any], channel: str) -> bool | None:
    """Tell whether a channel of the calling graph is a ledger; None if there is no such channel.

    It uses a private part of LangGraph (1.2), which `tests/embed` pins.
    """
    channels = keys[CONFIG_KEY_READ].args[1] if CONFIG_KEY_READ in keys else {}
    if channel not in channels:
        return None
    found = channels[channel]
    return isinstance(found, BinaryOperatorAggregate) and found.operator is merge_rows


def charge_of(config: RunnableConfig, run: str, rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """Return a run as rows of the node and super-step that calls it, by that node's config.

    There is one for each model that was asked, and one alone in most runs. Runs side by side in one
    super-step merge into the longest of them, as calls of one step do.
    """
    keys, metadata = config.get("configurable", {}), config.get("metadata", {})
    around = str(metadata.get("langgraph_checkpoint_ns", "")).rpartition("|")[0]
    checkpoint = str(keys.get(CONFIG_KEY_CHECKPOINT_MAP, {}).get(around, ""))
    node, step = str(metadata.get("langgraph_node", "")), int(metadata.get("langgraph_step", 0))
    found = totals_by_model(rows, node, step)
    return [with_part(LedgerRow({**row, "run": checkpoint}), run) for row in found]


def charge(call: Invocation, rows: list[LedgerRow], run: str | None = None) -> list[LedgerRow]:
    """Return what a run has cost as the calling node returns it; None is the call's own run."""
    if call.caller is None:
        return rows
    return charge_of(call.caller, call.run if run is None else run, rows)


def unfinished_rows(saved: CheckpointTuple | None) -> list[LedgerRow]:
    """Return what a stopped run has cost, drafts of a super-step under way included."""
    if saved is None or saved.checkpoint["channel_values"].get("phase") in {None, "done"}:
        return []
    told = (NULL_TASK_ID, *_END) in (saved.pending_writes or [])
    return [] if told else _rows(saved)


def untold(call: Invocation, keys: Mapping[str, Any], saved: CheckpointTuple) -> list[LedgerRow]:
    """Return the cost of a stopped run that the ledger of the graph around it lacks.

    Nothing is missing if the run stopped in the same place: its cost was stored there then.
    """
    if call.ledger is None:
        return call.abandoned
    around: list[LedgerRow] = keys[CONFIG_KEY_READ](call.ledger) or []
    run = saved.checkpoint["channel_values"].get("run", "")
    told = all(merge_rows(around, [row]) == around for row in charge(call, call.abandoned, run))
    return [] if told else call.abandoned


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


async def keep_end(saver: BaseCheckpointSaver[str], place: RunnableConfig) -> None:
    """Mark a run as ended whose last checkpoint is missing and whose cost is reported.

    Its last step is stored, so `resume` returns the run as it ended. New input on its thread
    discards the writes of that step. Without the mark the run would then count as stopped.
    """
    try:
        saved = await saver.aget_tuple(place)
        if saved is not None:
            await _write(saver, saved, *_END)
    # The result is known, so a store that can take no more must not withhold it.
    except Exception as error:  # noqa: BLE001
        logger.warning(
            "ledger.incomplete thread=%s error=%s", place["configurable"]["thread_id"], error
        )


async def settle(
    saver: BaseCheckpointSaver[str], keys: Mapping[str, Any], charges: Charges
) -> list[LedgerRow]:
    """Store the cost of calls whose node stored no result, with the last checkpoint.

    They are writes of the null task: LangGraph applies them when the run is continued or abandoned.

    Returns:
        All that the run has cost so far.
    """
    thread_id, namespace = place(keys)
    saved = await saver.aget_tuple(saved_at(thread_id, namespace))
    if saved is None:
        return charges.rows()
    rows = _rows(saved)
    lost = charges.lost(rows)
    await _write(saver, saved, "ledger", lost)
    return merge_rows(rows, lost)


async def settle_around(
    saver: BaseCheckpointSaver[str],
    keys: Mapping[str, Any],
    call: Invocation,
    rows: list[LedgerRow],
) -> None:
    """Store what a run that stopped has cost so far in the ledgers of the graphs around it.

    When the run ends, it returns the same rows, which then replace these.
    """
    if call.ledger is None:
        return
    if call.around is None:
        call.around = await _sharing(saver, keys, call.ledger)
    for namespace in call.around:
        saved = await saver.aget_tuple(saved_at(place(keys)[0], namespace))
        if saved is not None:
            await _write(saver, saved, call.ledger, rows)


async def _sharing(
    saver: BaseCheckpointSaver[str], keys: Mapping[str, Any], channel: str
) -> list[str]:
    """Return the namespaces of the graphs around a call that share a ledger, from the inside out.

    Only the channels of the calling graph are known. The graph around that one shares the ledger
    if it handed it in: a channel of the same name may be another thing there.
    """
    thread_id, own = place(keys)
    around = [each for each in keys.get(CONFIG_KEY_CHECKPOINT_MAP, {}) if each != own]
    around.sort(key=len, reverse=True)  # each begins with those that are further out
    for number, namespace in enumerate(around[:-1], 1):
        inputs = saver.alist(saved_at(thread_id, namespace), filter={"source": "input"}, limit=1)
        given = [as_dict(each.checkpoint["channel_values"].get(START)) async for each in inputs]
        if not (given and isinstance(given[0], Mapping) and _is_ledger(given[0].get(channel))):
            return around[:number]
    return around


def _rows(saved: CheckpointTuple) -> list[LedgerRow]:
    rows: list[LedgerRow] = list(saved.checkpoint["channel_values"].get("ledger", []))
    for _, channel, value in saved.pending_writes or []:
        if channel == "ledger" and isinstance(value, list):
            rows = merge_rows(rows, value)
    return rows


def _is_ledger(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, Mapping) and "critical_tokens" in each for each in value
    )


async def _write(
    saver: BaseCheckpointSaver[str],
    saved: CheckpointTuple,
    channel: str,
    value: list[LedgerRow] | str,
) -> None:
    for _ in range(_MOST_TRIES if value else 0):
        known = [
            (name, written)
            for task, name, written in saved.pending_writes or []
            if task == NULL_TASK_ID and name not in WRITES_IDX_MAP
        ]
        if (channel, value) in known:
            return
        # A saver keeps the first write at each position: that of a run beside this one, perhaps.
        await saver.aput_writes(saved.config, [*known, (channel, value)], NULL_TASK_ID)
        saved = await saver.aget_tuple(saved.config) or saved
    if value:
        logger.warning("ledger.contended channel=%s tries=%d", channel, _MOST_TRIES)
