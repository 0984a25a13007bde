"""Waits until a store has what an endpoint has answered, so that a test may kill what wrote it."""

import asyncio

from langgraph.checkpoint.base import BaseCheckpointSaver

from pdr_graph.errors import UnknownThreadError
from pdr_graph.run_history import history


async def until_drafts_are_stored(
    saver: BaseCheckpointSaver[str], thread_id: str, number: int, *, round_number: int = 1
) -> None:
    """Wait for the drafts of a round, those of a super-step under way included."""
    async with asyncio.timeout(60):
        while await _num_stored(saver, thread_id, round_number) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # a store tells nobody what is written to it


async def _num_stored(saver: BaseCheckpointSaver[str], thread_id: str, round_number: int) -> int:
    try:
        past = await history(thread_id, checkpointer=saver)
    except UnknownThreadError:
        return 0
    return sum(len(each.drafts) for each in past.rounds if each.round == round_number)
