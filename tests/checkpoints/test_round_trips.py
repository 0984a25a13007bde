"""How often the server is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pdr_checkpoints import RedisSaver
from pdr_checkpoints.store import StoreRetry
from test_saver import put


class CountingRetry(StoreRetry):
    """Tries once, and remembers how often it was asked to: once for each round trip."""

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
