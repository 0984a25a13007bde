"""The names of parts, and what of them is remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from pdr_checkpoints import RedisSaver, StoreUnreachableError
from pdr_checkpoints.connect import Argument, Connection
from pdr_checkpoints.records import SAMPLE, Digests
from test_saver import put


class CountingDigest:
    """SHA-256 that knows how often it was asked."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, body: bytes) -> bytes:
        self.num_calls += 1
        return hashlib.sha256(body).digest()


def test_a_body_that_comes_twice_is_hashed_once() -> None:
    """A draft comes as a pending write, and again in its channel."""
    digest = CountingDigest()
    digests = Digests(digest)
    first, again = digests(b"draft" * 1000), digests(bytes(bytearray(b"draft" * 1000)))
    assert (first == again, digest.num_calls) == (True, 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_bodies_with_the_same_ends_keep_their_own_names(bodies: list[tuple[int, int]]) -> None:
    """Length and ends only find a body; it is compared whole, however little is remembered."""
    digests = Digests(CountingDigest(), capacity=3 * SAMPLE)
    for end, middle in bodies:
        body = bytes([end]) * SAMPLE + bytes([middle]) + bytes([end]) * SAMPLE
        assert digests(body) == hashlib.sha256(body).digest()


def test_what_is_remembered_is_bounded() -> None:
    """The oldest bodies go first; one that is larger than all of the room is not kept."""
    digest = CountingDigest()
    digests = Digests(digest, capacity=2500)
    for body in (b"a" * 1000, b"b" * 1000, b"c" * 1000, b"b" * 1000, b"d" * 5000):
        digests(body)
    assert digest.num_calls == 4
    digests(b"a" * 1000)
    assert digest.num_calls == 5


@dataclass(frozen=True)
class Dying(Connection):
    """Lets as many scripts through as it has left, and no more: the client is killed."""

    left: list[str] = field(default_factory=list)

    async def exchange(self, command: Sequence[Argument]) -> Any:
        if not self.left:
            raise redis.ConnectionError("killed")
        self.left.pop()
        return await super().exchange(command)


async def test_a_checkpoint_is_never_seen_without_its_parts(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """Killed after it learnt that another removed a part, a writer has stored nothing."""
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
