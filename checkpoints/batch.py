"""Group commit: changes to one thread that are made at the same time are sent together.

Drafts of a round tend to end together, and a checkpoint follows its last draft at once. Each
change would be a round trip of its own; here the first one leaves in the next turn of the event
loop, with all that came meanwhile, and what comes while it is under way leaves next. A change is
acknowledged when the batch that holds it is stored. As changes of one thread
leave in order, a part that one of them stores is known to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from checkpoints.store import Fence
from checkpoints.values import Parts

LARGEST: Final = 64
"""Changes in one batch: with drafts of 32 kB about 1 MB, a few ms of the server's time."""


@dataclass(slots=True)
class Change:
    """What one call adds to a thread."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    """Set whatever was there before."""
    new_fields: dict[bytes, bytes] = field(default_factory=dict)
    """Set only where nothing was there: the first result of a task stands."""
    members: list[bytes] = field(default_factory=list)
    """Added to the index."""
    parts: Parts = field(default_factory=dict)
    is_checkpoint: bool = False
    """Whether it makes the thread the last written one."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    change: Change
    fence: Fence | None
    done: asyncio.Future[None]


def merge(changes: Sequence[Change]) -> Change:
    """Make one change that has the effect of several, applied in order."""
    if len(changes) == 1:
        return changes[0]
    merged = Change()
    for change in changes:
        merged.fields |= change.fields
        merged.new_fields = change.new_fields | merged.new_fields
        merged.members += change.members
        merged.parts |= change.parts
        merged.is_checkpoint |= change.is_checkpoint
    return merged


class Batcher:
    """One queue per thread that has something to send."""

    def __init__(self, apply: Callable[[str, Change, Fence | None], Awaitable[None]]) -> None:
        self._apply = apply
        self._waiting: dict[str, list[_Waiting]] = {}
        self._sending: dict[str, asyncio.Task[None] | None] = {}

    async def submit(self, thread_id: str, change: Change, fence: Fence | None) -> None:
        """Send a change and wait until it is stored."""
        if thread_id in self._sending:
            await self._enter(thread_id, change, fence)
            return
        self._sending[thread_id] = None
        try:
            # Drafts end together, so those of this moment may join; a super-step makes one
            # checkpoint.
            if not change.is_checkpoint:
                await asyncio.sleep(0)
            if thread_id not in self._waiting:
                # Alone, without a task of its own: each turn of a loop that runs 16 drafts may
                # take milliseconds.
                await self._apply(thread_id, change, fence)
                return
            done = self._enter(thread_id, change, fence, at=0)
        finally:
            if thread_id in self._waiting:
                self._sending[thread_id] = asyncio.create_task(self._send(thread_id))
            else:
                del self._sending[thread_id]
        await done

    def _enter(
        self, thread_id: str, change: Change, fence: Fence | None, at: int | None = None
    ) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._waiting.setdefault(thread_id, [])
        queue.insert(len(queue) if at is None else at, _Waiting(change, fence, done))
        return done

    async def _send(self, thread_id: str) -> None:
        try:
            while queue := self._waiting.get(thread_id):
                # Changes under another lease, after a take-over, are not sent with these.
                fence = queue[0].fence
                size = 1
                while size < min(len(queue), LARGEST) and queue[size].fence == fence:
                    size += 1
                self._waiting[thread_id] = queue[size:]
                await self._send_batch(thread_id, queue[:size], fence)
        finally:
            del self._sending[thread_id]
            for waiting in self._waiting.pop(thread_id, ()):
                waiting.done.cancel()

    async def _send_batch(
        self, thread_id: str, batch: Sequence[_Waiting], fence: Fence | None
    ) -> None:
        try:
            await self._apply(thread_id, merge([waiting.change for waiting in batch]), fence)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.done.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, whatever it is
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_exception(error)
        else:
            for waiting in batch:
                if not waiting.done.done():
                    waiting.done.set_result(None)
