"""The stored form: names that keep apart, digests, and threads that version 0.1 stored."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.types import ERROR
from langgraph.types import Send
from pdr_checkpoints import DecryptionError, RedisSaver, keys
from pdr_checkpoints.keys import thread_keys
from pdr_checkpoints.records import SAMPLE, Digests
from test_saver import put

# Surrogates included: a JSON body may hold a lone one.
NAMES = st.text(alphabet=st.characters(), max_size=8) | st.sampled_from(["", "\0", "\1", "\1\2"])


@given(names=st.lists(NAMES, min_size=1, max_size=4))
def test_names_come_back(names: list[str]) -> None:
    """Splitting returns what was joined."""
    assert keys.split(keys.join(keys.RECORD, *names)) == names


@given(one=st.lists(NAMES, min_size=1, max_size=3), two=st.lists(NAMES, min_size=1, max_size=3))
def test_a_range_holds_what_begins_with_its_names(one: list[str], two: list[str]) -> None:
    """A byte range holds exactly the longer names that begin with the given ones."""
    low, high = keys.below(keys.WRITE, *one)
    name = keys.join(keys.WRITE, *two)
    assert (low[1:] <= name < high[1:]) == (len(two) > len(one) and two[: len(one)] == one)


@given(one=NAMES, two=NAMES)
def test_threads_share_no_key(one: str, two: str) -> None:
    """Two ids have the same keys only if they are the same, and one brace-tag each."""
    first, second = thread_keys("p", one), thread_keys("p", two)
    assert (first == second) == (one == two)
    assert first.data.count("{") == 1
    assert first.data.split("{")[1].split("}")[0] != ""


class CountingDigest:
    """SHA-256 that counts its calls."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, body: bytes) -> bytes:
        self.num_calls += 1
        return hashlib.sha256(body).digest()


def test_a_body_that_comes_twice_is_hashed_once() -> None:
    """A draft comes as a pending write and again in its channel: one hash."""
    digest = CountingDigest()
    digests = Digests(digest)
    first, again = digests(b"draft" * 1000), digests(bytes(bytearray(b"draft" * 1000)))
    assert (first == again, digest.num_calls) == (True, 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_bodies_with_the_same_ends_keep_their_own_names(bodies: list[tuple[int, int]]) -> None:
    """A body is found by its length and ends, and then compared whole."""
    digests = Digests(CountingDigest(), capacity=3 * SAMPLE)
    for end, middle in bodies:
        body = bytes([end]) * SAMPLE + bytes([middle]) + bytes([end]) * SAMPLE
        assert digests(body) == hashlib.sha256(body).digest()


def test_what_is_remembered_is_bounded() -> None:
    """The oldest bodies go first; a body larger than the bound is not kept."""
    digest = CountingDigest()
    digests = Digests(digest, capacity=2500)
    for body in (b"a" * 1000, b"b" * 1000, b"c" * 1000, b"b" * 1000, b"d" * 5000):
        digests(body)
    assert digest.num_calls == 4
    digests(b"a" * 1000)
    assert digest.num_calls == 5


EXPORTED = {
    name: (Path(__file__).parent / "data" / f"thread_{name}.export").read_bytes()
    for name in ("plain", "encrypted")
}


async def test_stored_bytes_name_no_code_of_ours(
    open_saver: Callable[..., RedisSaver],
) -> None:
    """Modules and classes may be renamed: nothing that is stored refers to them."""
    saver = open_saver(compression="none")
    where = await put(saver, "t", {"small": [1, {"a": None}], "large": "long " * 1000})
    await saver.aput_writes(where, [("small", 2), (ERROR, "boom")], "task", "path")
    data = await saver._session.store.call("HGETALL", saver._session.store.thread("t").data)
    stored = b"".join(name + blob for name, blob in data.items())
    assert b"long " in stored
    assert not re.search(rb"pdr_checkpoints|Record|Writes|Place|Change|Fence", stored)


async def whole(file: bytes) -> AsyncIterator[bytes]:
    yield file


@pytest.mark.parametrize("name", EXPORTED)
async def test_a_thread_that_version_0_1_stored_is_read(
    open_saver: Callable[..., RedisSaver], name: str
) -> None:
    """Its states, metadata, parents and pending writes, from bytes that were exported then.

    An encrypted one is not bound to its thread, so that it takes an option.
    """
    saver = open_saver()
    if name == "encrypted":
        keys_alone = open_saver(encryption_keys=[b"k" * 32])
        saver = open_saver(encryption_keys=[b"k" * 32], read_older=True)
    # Without keys all is stored as it was.
    assert await open_saver().import_thread(whole(EXPORTED[name])) == "t"
    if name == "encrypted":
        with pytest.raises(DecryptionError, match="open it with read_older=True"):
            await keys_alone.aget_tuple({"configurable": {"thread_id": "t"}})
    found = [one async for one in saver.alist({"configurable": {"thread_id": "t"}})]
    drafts = [{"index": n, "text": f"draft 0.{n} " + "x" * 1200} for n in (0, 1)]
    sends = [Send("drafter", {"index": n, "round": 0}) for n in (0, 1)]
    last, middle, first, given_input = (one.checkpoint["channel_values"] for one in found)
    assert last == {
        "problem": "1 + 1", "width": 2, "rounds": 0, "drafts": drafts,
        "__pregel_tasks": [], "branch:to:collect": None,
    }  # fmt: skip
    assert middle["__pregel_tasks"] == sends
    assert first["rounds"] == 1
    assert given_input["__start__"]["problem"] == "1 + 1"
    assert [(one.metadata["step"], one.metadata["run_id"]) for one in found] == [
        (2, "one"), (1, "one"), (0, "one"), (-1, "one"),
    ]  # fmt: skip
    assert [one.parent_config for one in found[:-1]] == [one.config for one in found[1:]]
    assert [write[1:] for write in found[0].pending_writes or ()] == [("__error__", "boom")]
    writes = [write[2] for write in found[1].pending_writes or () if write[1] == "drafts"]
    assert writes == [[draft] for draft in drafts]
    await saver.adelete_for_runs(["one"])
    assert await saver.threads() == []
