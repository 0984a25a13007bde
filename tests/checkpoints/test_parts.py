"""The names of parts, and what of them is remembered."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from checkpoints.parts import SAMPLE, Digests


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
