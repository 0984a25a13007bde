"""What is sent: once, in few round trips, and never without what it refers to."""

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import fan_out
import pytest
import redis
from pdr_checkpoints import RedisSaver, StoreUnreachableError
from pdr_checkpoints.connect import Argument, Connection
from pdr_checkpoints.store import StoreRetry
from test_saver import put


class CountingRetry(StoreRetry):
    """Tries once, and counts its calls: one for each round trip."""

    def __init__(self, trips: list[str]) -> None:
        super().__init__("here", total_s=0)
        self.trips = trips

    async def __call__(
        self, operation: Callable[[], Awaitable[Any]], total_s: float | None = None
    ) -> Any:
        self.trips.append(self.where)
        return await super().__call__(operation, total_s)


@pytest.fixture
def trips(saver: RedisSaver) -> list[str]:
    """Record one entry for each round trip of the saver."""
    seen: list[str] = []
    saver._session.store.retry = CountingRetry(seen)
    return seen


@pytest.mark.parametrize("leased", [False, True])
async def test_writes_take_one_round_trip(
    saver: RedisSaver, trips: list[str], leased: bool
) -> None:
    """A checkpoint and a task's writes are each one, with or without a lease or shared parts."""
    text = "long " * 1000
    async with saver.lease("t") if leased else saver.lease("another"):
        trips.clear()
        config = await put(saver, "t", {"a": [text], "b": text})
        assert len(trips) == 1
        await saver.aput_writes(config, [("a", text), ("b", 1)], "task")
        assert len(trips) == 2


async def test_reads_take_few(saver: RedisSaver, trips: list[str]) -> None:
    """Latest id, record, values, parts: four trips for the latest state, three for a named one."""
    config = await put(saver, "t", {"a": "long " * 1000})
    trips.clear()
    await saver.aget_tuple({"configurable": {"thread_id": "t"}})
    assert len(trips) == 4
    trips.clear()
    await saver.aget_tuple(config)
    assert len(trips) == 3


async def test_a_draft_is_stored_and_sent_once(
    open_saver: Callable[..., RedisSaver], tmp_path: Path
) -> None:
    """The pending write and the channel that collects it share the draft's bytes."""
    saver = open_saver(compression="none")

    async def drafter(argument: dict[str, Any]) -> dict[str, Any]:
        return {"drafts": [{"index": argument["index"], "text": os.urandom(20_000).hex()}]}

    graph = fan_out.build(drafter, checkpointer=saver)
    await graph.ainvoke(fan_out.start(width=8), fan_out.config("t"), durability="sync")
    (info,) = await saver.threads()
    assert info.num_bytes is not None
    assert 8 * 40_000 < info.num_bytes < 8 * 40_000 * 1.3


@pytest.mark.parametrize("leased", ["t", "another"])
async def test_parts_that_vanished_are_sent_again(saver: RedisSaver, leased: str) -> None:
    """The saver checks that remembered parts are still on the server."""
    text = "long " * 1000
    async with saver.lease(leased):
        await put(saver, "t", {"a": text})
        await saver.adelete_thread("t")
        await put(saver, "t", {"a": text})
    found = await saver.aget_tuple({"configurable": {"thread_id": "t"}})
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": text}


@dataclass(frozen=True)
class Dying(Connection):
    """Sends as many scripts as it has left, then fails as if the client were killed."""

    left: list[str] = field(default_factory=list)

    async def exchange(self, command: Sequence[Argument], wait: tuple[int, int] | None) -> Any:
        if not self.left:
            raise redis.ConnectionError("killed")
        self.left.pop()
        return await super().exchange(command, wait)


async def test_a_checkpoint_is_never_seen_without_its_parts(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """A writer that is killed once it knows that a part was removed has stored nothing."""
    saver, other = open_saver(retry_for_s=0), open_saver()
    where = {"configurable": {"thread_id": "t"}}
    await put(saver, "t", {"a": "long " * 1000})
    await other.adelete_thread("t")
    store = saver._session.store
    same = {one.name: getattr(store.connection, one.name) for one in fields(store.connection)}
    store.connection = Dying(**same, left=["one script"])
    with pytest.raises(StoreUnreachableError):
        await put(saver, "t", {"a": "long " * 1000})
    assert await other.aget_tuple(where) is None


async def test_many_parts_that_are_stored_are_referred_to(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """More than a server-side script can take in one command."""
    saver = open_saver()
    values = {"messages": [f"{number:>1100}" for number in range(9000)]}
    await put(saver, "t", values)
    where = await put(saver, "t", values)
    found = await saver.aget_tuple(where)
    assert found is not None
    assert found.checkpoint["channel_values"] == values
