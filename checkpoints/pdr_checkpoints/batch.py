"""Group commit: changes to one thread that are made at the same time are sent together.

Drafts of a round tend to end together, and each change would be a round trip of its own. Here the
first leaves at once. Those that follow while it is under way leave as soon as they are
`BATCH_BYTES`, so that the server stores some while the next are compressed; at the latest, they
leave with the turn of the event loop. With many runs at once, which keep the server busy anyway, a
thread has one batch under way, and all that comes meanwhile is the next. A change is acknowledged
when the batch that holds it is stored.

Batches under way have connections of their own, so they may reach the server in another order than
they were made in. A change that touches what one before it touches (a field, or a part, which is
then known to be stored) waits until that one is acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pdr_checkpoints.keys import HEAD
from pdr_checkpoints.records import Parts
from pdr_checkpoints.store import Fence

LARGEST: Final = 64
"""Changes in one batch."""
BATCH_BYTES: Final = 150_000
"""Parts, before compression, that are enough for a batch: 0.4 ms of compression, and about as much
of the server's time."""
CROWDED_BYTES: Final = 1_000_000
"""As many are enough while the saver is crowded."""
CROWDED: Final = 4
"""Threads that send at a time, from which on each has only one batch under way."""


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

    @property
    def touched(self) -> frozenset[bytes]:
        """What no other change may touch while this one is under way."""
        # Every checkpoint sets the head of its thread if there is none: whichever comes first.
        return frozenset((*self.fields, *self.new_fields, *self.parts)) - {HEAD}

    @property
    def num_bytes(self) -> int:
        """Bytes of the parts, before compression."""
        return sum(map(len, self.parts.values()))


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    change: Change
    fence: Fence | None
    touched: frozenset[bytes]
    num_bytes: int
    done: asyncio.Future[None]


@dataclass(slots=True)
class _Thread:
    """A thread that has something to send or is sending it."""

    waiting: list[_Waiting] = field(default_factory=list)
    under_way: list[frozenset[bytes]] = field(default_factory=list)
    """What each batch that was sent touches."""
    collecting: bool = False
    """Whether a caller will send, with this turn of the loop, what waits."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has nothing left."""

    @property
    def has_enough(self) -> bool:
        """Whether what waits is enough for a batch."""
        enough = sum(one.num_bytes for one in self.waiting) >= BATCH_BYTES
        return enough or len(self.waiting) >= LARGEST

    def next_batch(self, num_bytes: int) -> list[_Waiting]:
        """Take what may leave off the queue, in order, until it has so many bytes."""
        batch: list[_Waiting] = []
        left: list[_Waiting] = []
        taken = frozenset[bytes]().union(*self.under_way)
        for one in self.waiting:
            # Changes under another lease, after a take-over, are not sent with these.
            fits = not batch or (
                num_bytes > 0 and len(batch) < LARGEST and one.fence == batch[0].fence
            )
            if fits and taken.isdisjoint(one.touched):
                batch.append(one)
                num_bytes -= one.num_bytes
            else:
                left.append(one)
                taken |= one.touched
        self.waiting = left
        return batch


def touched_by(batch: Sequence[_Waiting]) -> frozenset[bytes]:
    """Give all that a batch touches."""
    return frozenset[bytes]().union(*(one.touched for one in batch))


def is_given_up(batch: Sequence[_Waiting]) -> bool:
    """Whether every caller of a batch was cancelled."""
    return all(one.done.done() for one in batch)


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


class CommitBatcher:
    """Sends the changes of every thread."""

    def __init__(self, apply: Callable[[str, Change, Fence | None], Awaitable[None]]) -> None:
        self._apply = apply
        self._threads: dict[str, _Thread] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """The event loop itself holds its tasks only weakly."""

    async def submit(self, thread_id: str, change: Change, fence: Fence | None) -> None:
        """Send a change and wait until it is stored."""
        thread = self._threads.get(thread_id)
        if thread is None:
            thread = self._threads[thread_id] = _Thread()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        thread.waiting.append(_Waiting(change, fence, change.touched, change.num_bytes, done))
        # A super-step makes one checkpoint: nothing of its kind is to be waited for.
        if thread.under_way and not thread.has_enough and not change.is_checkpoint:
            if thread.collecting:
                await done
                return
            thread.collecting = True
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                done.cancel()
                thread.collecting = False
                self._go_on(thread_id, thread)
                raise
            thread.collecting = False
        # A caller sends by itself what it can: a task would begin in the next turn, and a turn of a
        # loop that runs 16 drafts may take milliseconds.
        if batch := self._next(thread):
            try:
                await self._send(thread_id, thread, batch)
            except asyncio.CancelledError:
                done.cancel()
                if is_given_up(batch):
                    self._arrived(thread_id, thread, batch)
                else:
                    # Others wait for it too; to store what is stored already does no harm.
                    self._start(thread_id, thread, batch)
                raise
        await done

    async def settle(self, thread_id: str) -> None:
        """Wait until all that was submitted for a thread is stored, or failed."""
        if thread := self._threads.get(thread_id):
            await thread.settled.wait()

    def _next(self, thread: _Thread) -> list[_Waiting]:
        crowded = len(self._threads) >= CROWDED
        if crowded and thread.under_way:
            return []
        if batch := thread.next_batch(CROWDED_BYTES if crowded else BATCH_BYTES):
            thread.under_way.append(touched_by(batch))
        return batch

    async def _send(self, thread_id: str, thread: _Thread, batch: Sequence[_Waiting]) -> None:
        try:
            change = merge([one.change for one in batch])
            await self._apply(thread_id, change, batch[0].fence)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, whatever it is
            for one in batch:
                if not one.done.done():
                    one.done.set_exception(error)
        else:
            for one in batch:
                if not one.done.done():
                    one.done.set_result(None)
        self._arrived(thread_id, thread, batch)

    def _arrived(self, thread_id: str, thread: _Thread, batch: Sequence[_Waiting]) -> None:
        """Note that a batch is stored, or failed, or that nobody waits for it any more."""
        thread.under_way.remove(touched_by(batch))
        self._go_on(thread_id, thread)

    def _go_on(self, thread_id: str, thread: _Thread) -> None:
        """Send what may leave, and forget a thread that has nothing left."""
        while not thread.collecting and (batch := self._next(thread)):
            if is_given_up(batch):
                thread.under_way.remove(touched_by(batch))
            else:
                self._start(thread_id, thread, batch)
        if not thread.under_way and not thread.waiting:
            thread.settled.set()
            if self._threads.get(thread_id) is thread:
                del self._threads[thread_id]

    def _start(self, thread_id: str, thread: _Thread, batch: Sequence[_Waiting]) -> None:
        """Send a batch that no caller sends."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # the loop is ending
                for one in batch:
                    one.done.cancel()

        task = asyncio.create_task(self._send(thread_id, thread, batch))
        self._tasks.add(task)
        task.add_done_callback(ended)
