"""Group commit: changes that are made to one thread at the same time are sent together.

Drafts of a round tend to end together, and each change would be a round trip of its own. Here the
first change leaves at once. Those that follow while it is under way leave as soon as they have
`BATCH_BYTES`, so that the server stores some while the next are compressed; at the latest they
leave with the turn of the event loop. Many runs at once keep the server busy anyway. Then a thread
has only one batch under way, and all changes that come meanwhile form the next batch. A change is
acknowledged when its batch is stored.

Batches under way have connections of their own, so they may reach the server in another order than
they were made in. A change that touches what an earlier one touches (a field or a part) waits until
that one is acknowledged.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pdr_checkpoints.keys import HEAD
from pdr_checkpoints.records import Parts
from pdr_checkpoints.store import Fence

LARGEST: Final = 64
"""Changes in one batch."""
BATCH_BYTES: Final = 150_000
"""Bytes of parts, before compression, that are enough for a batch: 0.4 ms of compression, and about
as much of the server's time."""
CROWDED_BYTES: Final = 1_000_000
"""The same while the saver is crowded."""
CROWDED: Final = 4
"""The saver is crowded while this many threads send; then each has only one batch under way."""


@dataclass(slots=True)
class Change:
    """What one call adds to a thread."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    """Set even if a value was there before."""
    new_fields: dict[bytes, bytes] = field(default_factory=dict)
    """Set only where nothing was there: the first result of a task stands."""
    members: list[bytes] = field(default_factory=list)
    """Added to the index."""
    parts: Parts = field(default_factory=dict)
    is_checkpoint: bool = False
    """Whether it makes the thread the last written one."""
    builds_on: list[bytes] = field(default_factory=list)
    """Members that the index has, if the server has lost nothing."""
    rest: list[Callable[[], "Change"]] = field(default_factory=list)
    """Functions that make further changes, to be stored if the server has lost one of those
    members."""

    @property
    def touched(self) -> frozenset[bytes]:
        """What no other change may touch while this one is under way."""
        # Every checkpoint sets the head of its thread if there is none; any of them may be first.
        return frozenset((*self.fields, *self.new_fields, *self.parts)) - {HEAD}

    @property
    def num_bytes(self) -> int:
        """Bytes of the parts, before compression."""
        return sum(map(len, self.parts.values()))


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
        merged.builds_on += change.builds_on
        merged.rest += change.rest
    return merged


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A change and the caller that waits for it."""

    change: Change
    fence: Fence | None
    touched: frozenset[bytes]
    num_bytes: int
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """Changes that are sent together."""

    waiting: Sequence[_Waiting]
    touched: frozenset[bytes]

    @property
    def is_given_up(self) -> bool:
        """Whether every caller was cancelled."""
        return all(one.done.done() for one in self.waiting)

    def finish(self, error: Exception | None) -> None:
        """Tell every caller that its change is stored, or why not."""
        for one in self.waiting:
            if one.done.done():
                continue
            if error is None:
                one.done.set_result(None)
            else:
                one.done.set_exception(error)


@dataclass(slots=True)
class _ThreadQueue:
    """The changes of one thread that wait or are under way."""

    waiting: list[_Waiting] = field(default_factory=list)
    under_way: list[_Batch] = field(default_factory=list)
    is_collecting: bool = False
    """Whether a caller will send what waits, with this turn of the loop."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing is left."""

    @property
    def has_enough(self) -> bool:
        """Whether what waits is enough for a batch."""
        enough = sum(one.num_bytes for one in self.waiting) >= BATCH_BYTES
        return enough or len(self.waiting) >= LARGEST

    def next_batch(self, num_bytes: int) -> _Batch | None:
        """Take, in order, what may leave, until it has so many bytes."""
        batch: list[_Waiting] = []
        left: list[_Waiting] = []
        taken = frozenset[bytes]().union(*(one.touched for one in self.under_way))
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
        if not batch:
            return None
        made = _Batch(batch, frozenset[bytes]().union(*(one.touched for one in batch)))
        self.under_way.append(made)
        return made


class CommitBatcher:
    """Sends the changes of every thread."""

    def __init__(self, apply: Callable[[str, Change, Fence | None], Awaitable[None]]) -> None:
        self._apply = apply
        self._queues: defaultdict[str, _ThreadQueue] = defaultdict(_ThreadQueue)
        self._tasks: set[asyncio.Task[None]] = set()
        """The event loop itself holds its tasks only weakly."""

    async def submit(self, thread_id: str, change: Change, fence: Fence | None) -> None:
        """Send a change and wait until it is stored."""
        queue = self._queues[thread_id]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting.append(_Waiting(change, fence, change.touched, change.num_bytes, done))
        # A super-step makes one checkpoint, so no other will join this one.
        if queue.under_way and not queue.has_enough and not change.is_checkpoint:
            if queue.is_collecting:
                await done
                return
            queue.is_collecting = True
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                done.cancel()
                queue.is_collecting = False
                self._go_on(thread_id, queue)
                raise
            queue.is_collecting = False
        # A caller sends by itself what it can: a task would begin in the next turn, and a turn of a
        # loop that runs 16 drafts may take milliseconds.
        if batch := self._next(queue):
            try:
                await self._send(thread_id, queue, batch)
            except asyncio.CancelledError:
                done.cancel()
                if batch.is_given_up:
                    queue.under_way.remove(batch)
                    self._go_on(thread_id, queue)
                else:
                    # Others wait for it too; to store what is stored already does no harm.
                    self._start(thread_id, queue, batch)
                raise
        await done

    async def settle(self, thread_id: str) -> None:
        """Wait until all that was submitted for a thread is stored, or failed."""
        if queue := self._queues.get(thread_id):
            await queue.settled.wait()

    def _next(self, queue: _ThreadQueue) -> _Batch | None:
        is_crowded = len(self._queues) >= CROWDED
        if is_crowded and queue.under_way:
            return None
        return queue.next_batch(CROWDED_BYTES if is_crowded else BATCH_BYTES)

    async def _send(self, thread_id: str, queue: _ThreadQueue, batch: _Batch) -> None:
        try:
            change = merge([one.change for one in batch.waiting])
            await self._apply(thread_id, change, batch.waiting[0].fence)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, whatever it is
            batch.finish(error)
        else:
            batch.finish(None)
        queue.under_way.remove(batch)
        self._go_on(thread_id, queue)

    def _go_on(self, thread_id: str, queue: _ThreadQueue) -> None:
        """Send what may leave, and forget a thread that has nothing left."""
        while not queue.is_collecting and (batch := self._next(queue)):
            if batch.is_given_up:
                queue.under_way.remove(batch)
            else:
                self._start(thread_id, queue, batch)
        if not queue.under_way and not queue.waiting:
            queue.settled.set()
            if self._queues.get(thread_id) is queue:
                del self._queues[thread_id]

    def _start(self, thread_id: str, queue: _ThreadQueue, batch: _Batch) -> None:
        """Send a batch that no caller sends."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # the loop is ending
                for one in batch.waiting:
                    one.done.cancel()

        task = asyncio.create_task(self._send(thread_id, queue, batch))
        self._tasks.add(task)
        task.add_done_callback(ended)
