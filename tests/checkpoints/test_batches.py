"""Changes that are made at the same time leave together, and fail together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest
from redis_servers import Server
from test_saver import put

from checkpoints import LeaseLostError, RedisSaver
from checkpoints.batch import LARGEST, Batcher, Change, merge
from checkpoints.store import Fence


class Recorder:
    """Takes batches as a server would, slowly, and can refuse them."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[tuple[Change, Fence | None]] = []
        self.error = error

    async def __call__(self, thread_id: str, change: Change, fence: Fence | None) -> None:
        self.batches.append((change, fence))
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error


def change(name: bytes) -> Change:
    return Change(new_fields={name: name}, members=[name])


async def test_changes_of_one_moment_leave_together() -> None:
    """Sixteen drafts that end at once are one transaction; what comes meanwhile is the next."""
    recorder = Recorder()
    batcher = Batcher(recorder)
    first = [asyncio.create_task(batcher.submit("t", change(b"%d" % n), None)) for n in range(16)]
    await asyncio.sleep(0.005)
    await batcher.submit("t", change(b"next"), None)
    await asyncio.gather(*first)
    assert [len(batch.members) for batch, _ in recorder.batches] == [16, 1]


async def test_a_batch_is_bounded() -> None:
    """No transaction holds more than the largest number of changes, and none is lost."""
    recorder = Recorder()
    batcher = Batcher(recorder)
    await asyncio.gather(*(batcher.submit("t", change(b"%d" % n), None) for n in range(150)))
    sizes = [len(batch.members) for batch, _ in recorder.batches]
    assert (max(sizes), sum(sizes)) == (LARGEST, 150)


async def test_changes_under_different_leases_are_kept_apart() -> None:
    """A stale lease must not take along, nor be covered by, what a later one writes."""
    recorder = Recorder()
    batcher = Batcher(recorder)
    leases = [Fence("t", 1, b"1"), Fence("t", 1, b"1"), Fence("t", 2, b"2"), None]
    await asyncio.gather(*(batcher.submit("t", change(b"x"), lease) for lease in leases))
    assert [fence for _, fence in recorder.batches] == [leases[0], leases[2], None]


async def test_a_failure_reaches_every_caller() -> None:
    """Whoever waits on a refused transaction is told, and the queue goes on."""
    recorder = Recorder(LeaseLostError("t", 1))
    batcher = Batcher(recorder)
    tasks = (batcher.submit("t", change(b"%d" % n), None) for n in range(3))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [LeaseLostError] * 3
    recorder.error = None
    await batcher.submit("t", change(b"again"), None)


async def test_a_cancelled_caller_does_not_stop_the_others() -> None:
    """Its change may be stored or not; theirs are."""
    recorder = Recorder()
    batcher = Batcher(recorder)
    tasks = [asyncio.create_task(batcher.submit("t", change(b"%d" % n), None)) for n in range(3)]
    await asyncio.sleep(0.005)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None)]


def test_merging_keeps_the_order() -> None:
    """Of replaceable fields the last stands, of results the first."""
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
    """Cancelled while its reply is under way: what is asked next gets its own."""
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
