"""One process runs a thread at a time, and a process that lost it cannot write."""

import asyncio
import logging
from collections.abc import Callable

import pytest
from pdr_checkpoints import LeaseLostError, RedisSaver, StoreConfigError, ThreadBusyError
from test_saver import put


async def test_second_holder_is_refused(open_saver: Callable[..., RedisSaver]) -> None:
    """The refusal names the thread, the holder and the time left; the listing shows the holder."""
    first, second = open_saver(), open_saver()
    await put(first, "t", {})
    async with first.lease("t", owner="worker-1:42"):
        with pytest.raises(ThreadBusyError, match="thread 't' is being run by worker-1:42") as busy:
            async with second.lease("t"):
                pass
        assert 0 < busy.value.expires_in_s <= 30
        assert [info.holder for info in await second.threads()] == ["worker-1:42"]
    async with second.lease("t"):
        pass
    assert [info.holder for info in await second.threads()] == [None]


async def test_lease_outlives_its_time_while_held(open_saver: Callable[..., RedisSaver]) -> None:
    """A held lease is renewed."""
    first, second = open_saver(), open_saver()
    async with first.lease("t", ttl_s=0.3) as lease:
        await asyncio.sleep(0.8)
        with pytest.raises(ThreadBusyError):
            async with second.lease("t"):
                pass
        assert not lease.lost.is_set()


async def test_waiting_for_a_lease(open_saver: Callable[..., RedisSaver]) -> None:
    """A holder that ends in time lets the waiting one in, with the next token."""
    first, second = open_saver(), open_saver()

    async def hold() -> None:
        async with first.lease("t"):
            await asyncio.sleep(0.3)

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0.05)
    async with second.lease("t", wait_s=5) as lease:
        assert lease.token == 2
    await holding


async def take_over(saver: RedisSaver, other: RedisSaver) -> None:
    """Let the lease of `saver` run out as if its process had been suspended."""
    await saver._session.store.call("DEL", saver._session.store.thread("t").lease)
    async with other.lease("t"):
        await put(other, "t", {"a": "theirs"})


async def test_stale_holder_cannot_write(
    open_saver: Callable[..., RedisSaver], caplog: pytest.LogCaptureFixture
) -> None:
    """After a take-over every write of the first holder is refused and stores nothing."""
    first, second = open_saver(), open_saver()
    with caplog.at_level(logging.ERROR):
        async with first.lease("t", ttl_s=0.6) as lease:
            config = await put(first, "t", {"a": "mine"})
            await take_over(first, second)
            with pytest.raises(LeaseLostError, match="lease 1 of thread 't'"):
                await put(first, "t", {"a": "stale"})
            with pytest.raises(LeaseLostError):
                await first.aput_writes(config, [("a", "stale")], "task")
            await asyncio.wait_for(lease.lost.wait(), 2)
        assert "lease.lost" in caplog.text
    history = [
        found.checkpoint["channel_values"]["a"]
        async for found in second.alist({"configurable": {"thread_id": "t"}})
    ]
    assert history == ["theirs", "mine"]


async def test_lease_that_ran_out_unnoticed_still_counts(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """If nobody else took the thread (the server was down), its holder goes on."""
    saver, other = open_saver(), open_saver()
    async with saver.lease("t", ttl_s=0.3):
        await saver._session.store.call("DEL", saver._session.store.thread("t").lease)
        await put(saver, "t", {"a": 1})
        await asyncio.sleep(0.25)
        with pytest.raises(ThreadBusyError):
            async with other.lease("t"):
                pass


async def test_cancelled_holder_frees_the_thread(open_saver: Callable[..., RedisSaver]) -> None:
    """A cancelled run does not lock its thread until the lease runs out."""
    first, second = open_saver(), open_saver()

    async def hold() -> None:
        async with first.lease("t"):
            await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await asyncio.sleep(0.1)
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    async with second.lease("t"):
        pass


async def test_fenced_writes_store_what_plain_ones_do(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """Values, pending writes and shared parts that were written under a lease come back."""
    saver = open_saver()
    text = "long " * 1000
    async with saver.lease("t"):
        config = await put(saver, "t", {"a": [text]})
        await saver.aput_writes(config, [("a", text), ("b", 1)], "task", "path")
        await put(saver, "t", {"a": [text, text]})
        found = await saver.aget_tuple(config)
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": [text]}
    assert found.pending_writes == [("task", "a", text), ("task", "b", 1)]


async def test_lease_time_must_be_positive(saver: RedisSaver) -> None:
    """A lease that runs out at once is a mistake."""
    with pytest.raises(StoreConfigError, match="ttl_s is 0"):
        async with saver.lease("t", ttl_s=0):
            pass


async def test_what_a_lease_began_is_written_under_it(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """A cancelled run stores for a moment longer, but never over the work of the next holder."""
    saver, other = open_saver(), open_saver()
    go, late = asyncio.Event(), asyncio.Event()

    async def write(when: asyncio.Event, value: int) -> None:
        await when.wait()
        await put(saver, "t", {"a": value})

    async with saver.lease("t"):
        soon, later = asyncio.create_task(write(go, 1)), asyncio.create_task(write(late, 2))
    go.set()
    await soon
    async with other.lease("t"):
        late.set()
        with pytest.raises(LeaseLostError):
            await later
    await put(saver, "t", {"a": 3})
