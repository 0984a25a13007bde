"""Changes that are made at the same time leave together, and fail together."""

import asyncio
import signal
from collections.abc import Callable

import pytest
from pdr_checkpoints import LeaseLostError, RedisSaver
from pdr_checkpoints.batch import CROWDED, LARGEST, Change, CommitBatcher, merge
from pdr_checkpoints.store import Fence
from redis_servers import Server
from test_saver import put


class Recorder:
    """Takes batches as a server would, slowly, and can refuse them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[tuple[Change, Fence | None]] = []
        self.stored: list[Change] = []
        self.error = error
        self.open: dict[str, asyncio.Event] = {}
        """Threads whose changes are stored when the event is set."""

    async def __call__(self, thread_id: str, change: Change, fence: Fence | None) -> None:
        self.batches.append((change, fence))
        if thread_id in self.open:
            await self.open[thread_id].wait()
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        self.stored.append(change)

    @property
    def sizes(self) -> list[int]:
        return [len(batch.members) for batch, _ in self.batches]


def change(name: bytes, num_bytes: int = 0) -> Change:
    parts = {b"digest of " + name: bytes(num_bytes)} if num_bytes else {}
    return Change(new_fields={name: name}, members=[name], parts=parts)


async def submit_all(batcher: CommitBatcher, changes: list[Change], thread_id: str = "t") -> None:
    await asyncio.gather(*(batcher.submit(thread_id, one, None) for one in changes))


async def test_changes_of_one_moment_leave_together() -> None:
    """Of sixteen changes the first leaves at once, the other fifteen as one batch."""
    recorder = Recorder()
    await submit_all(CommitBatcher(recorder), [change(b"%d" % n) for n in range(16)])
    assert recorder.sizes == [1, 15]


async def test_a_large_round_leaves_in_pieces() -> None:
    """Drafts of 32 kB leave by fives, all of them before the first is stored."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    drafts = [change(b"%d" % n, 32_000) for n in range(16)]
    sending = asyncio.create_task(submit_all(batcher, drafts))
    await asyncio.sleep(0.005)
    assert (recorder.sizes, recorder.stored) == ([1, 5, 5, 5], [])
    await sending
    assert len(recorder.stored) == 4


async def test_a_busy_saver_sends_more_at_once() -> None:
    """With many runs, a thread has one batch under way; all that came meanwhile is the next."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    names = [f"other-{n}" for n in range(CROWDED)]
    recorder.open = {name: asyncio.Event() for name in names}
    others = [asyncio.create_task(batcher.submit(name, change(b"x"), None)) for name in names]
    await asyncio.sleep(0)
    await submit_all(batcher, [change(b"%d" % n, 32_000) for n in range(16)])
    for stored in recorder.open.values():
        stored.set()
    await asyncio.gather(*others)
    assert recorder.sizes == [1] * CROWDED + [1, 15]


async def test_what_touches_the_same_waits() -> None:
    """A checkpoint that refers to a draft leaves once that is stored; another does not wait."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    draft, refers = change(b"draft", 32_000), change(b"refers")
    refers.parts, refers.is_checkpoint = dict(draft.parts), True
    apart = change(b"apart")
    apart.is_checkpoint = True
    sending = asyncio.create_task(submit_all(batcher, [draft, refers, apart]))
    await asyncio.sleep(0.005)
    assert [batch for batch, _ in recorder.batches] == [draft, apart]
    await sending
    assert recorder.stored == [draft, apart, refers]


async def test_a_batch_is_bounded() -> None:
    """No transaction holds more than the largest number of changes, and none is lost."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    await asyncio.gather(*(batcher.submit("t", change(b"%d" % n), None) for n in range(150)))
    sizes = [len(batch.members) for batch, _ in recorder.batches]
    assert (max(sizes), sum(sizes)) == (LARGEST, 150)


async def test_changes_under_different_leases_are_kept_apart() -> None:
    """Changes of a stale lease and of a later one are never in one batch."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    leases = [Fence("t", 1, b"1"), Fence("t", 1, b"1"), Fence("t", 2, b"2"), None]
    first = asyncio.create_task(batcher.submit("t", change(b"first"), leases[0]))
    await asyncio.sleep(0)
    await asyncio.gather(
        *(batcher.submit("t", change(b"%d" % n), lease) for n, lease in enumerate(leases))
    )
    await first
    assert recorder.sizes == [1, 2, 1, 1]
    assert [fence for _, fence in recorder.batches[1:]] == [leases[0], leases[2], None]


async def test_a_failure_reaches_every_caller() -> None:
    """Every caller of a refused batch gets the error, and the queue goes on."""
    recorder = Recorder(LeaseLostError("t", 1))
    batcher = CommitBatcher(recorder)
    tasks = (batcher.submit("t", change(b"%d" % n), None) for n in range(3))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [LeaseLostError] * 3
    recorder.error = None
    await batcher.submit("t", change(b"again"), None)


@pytest.mark.parametrize("cancelled", range(6))
async def test_a_cancelled_caller_does_not_stop_the_others(cancelled: int) -> None:
    """Its change may be stored or not. Theirs are, whichever caller was sending the batch."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    made = [change(b"%d" % n, 40_000) for n in range(6)]
    tasks = [asyncio.create_task(batcher.submit("t", one, None)) for one in made]
    await asyncio.sleep(0.005)
    tasks[cancelled].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    expected: list[type] = [type(None)] * 6
    expected[cancelled] = asyncio.CancelledError
    assert [type(result) for result in results] == expected
    stored = {name for one in recorder.stored for name in one.members}
    assert stored >= {name for n, one in enumerate(made) for name in one.members if n != cancelled}
    await batcher.submit("t", change(b"later"), None)


async def test_a_caller_cancelled_while_others_join_does_not_stop_them() -> None:
    """The caller that was to send with this turn of the loop is gone before the turn ends."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    tasks = [asyncio.create_task(batcher.submit("t", change(b"%d" % n), None)) for n in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [
        False, True, False, False,
    ]  # fmt: skip


async def test_a_cancelled_change_does_not_fail_the_one_before_it() -> None:
    """A change whose caller is gone is dropped, and the one before it is stored."""
    recorder = Recorder()
    batcher = CommitBatcher(recorder)
    first = asyncio.create_task(batcher.submit("t", change(b"same"), None))
    await asyncio.sleep(0)
    others = [asyncio.create_task(batcher.submit("t", change(b"same"), None)) for _ in range(3)]
    await asyncio.sleep(0.005)
    for other in others:
        other.cancel()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), *[asyncio.CancelledError] * 3]
    assert recorder.sizes == [1]
    await batcher.submit("t", change(b"same"), None)
    assert recorder.sizes == [1, 1]


def test_merging_keeps_the_order() -> None:
    """The last value of a replaceable field stands, and the first result of a task."""
    one = Change({b"e": b"1"}, {b"r": b"1"}, [b"r"], {b"p": b""})
    two = Change({b"e": b"2"}, {b"r": b"2", b"s": b"2"}, [b"s"], {}, is_checkpoint=True)
    merged = Change({b"e": b"2"}, {b"r": b"1", b"s": b"2"}, [b"r", b"s"], {b"p": b""}, True)
    assert merge([one, two]) == merged


async def test_a_server_that_hangs_is_asked_again(
    open_saver: Callable[..., RedisSaver], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A reply that does not come in time counts as a lost connection; nothing is stored twice."""
    server = Server("valkey", tmp_path_factory.mktemp("hanging")).start()
    saver = open_saver(server.url, reply_timeout_s=0.3)
    assert server.process is not None
    try:
        await put(saver, "t", {"a": 1})
        server.process.send_signal(signal.SIGSTOP)
        writing = asyncio.create_task(put(saver, "t", {"a": 2}))
        await asyncio.sleep(0.8)
        assert not writing.done()
        server.process.send_signal(signal.SIGCONT)
        await writing
        listed = [found async for found in saver.alist({"configurable": {"thread_id": "t"}})]
        assert [found.checkpoint["channel_values"]["a"] for found in listed] == [2, 1]
    finally:
        await saver.aclose()
        server.process.send_signal(signal.SIGCONT)
        server.stop()


async def test_a_cancelled_write_leaves_its_reply_to_nobody(
    open_saver: Callable[..., RedisSaver], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After a cancelled call, the next call gets its own reply."""
    server = Server("valkey", tmp_path_factory.mktemp("cancelled")).start()
    saver = open_saver(server.url)
    assert server.process is not None
    try:
        where = await put(saver, "t", {"a": 1})
        server.process.send_signal(signal.SIGSTOP)
        writing = asyncio.create_task(saver.aput_writes(where, [("a", 2)], "task"))
        await asyncio.sleep(0.1)
        writing.cancel()
        server.process.send_signal(signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await writing
        for _ in range(5):
            found = await saver.aget_tuple({"configurable": {"thread_id": "t"}})
            assert found is not None
            assert found.checkpoint["channel_values"] == {"a": 1}
        await saver.aput_writes(where, [("a", 3)], "other")
    finally:
        await saver.aclose()
        server.process.send_signal(signal.SIGCONT)
        server.stop()
