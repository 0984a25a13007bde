"""Small stored bytes that would become large: refused by name, in bounded memory and time."""

import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cache

import ormsgpack
import pytest
import zstandard
from pdr_checkpoints import (
    AllowlistSerializer,
    CorruptCheckpointError,
    RedisSaver,
    StoreConfigError,
    TooLargeError,
    keys,
)
from pdr_checkpoints.envelope import ThreadEnvelope, _check
from pdr_checkpoints.records import dump
from pdr_checkpoints.serde import MOST_PER_BYTE, Allowance, _memory_of
from test_corruption import each_blob, overwrite
from test_forged import file_of, frames
from test_saver import checkpoint, put

pytestmark = pytest.mark.security

LIMIT = 4_000_000
PEAK = 12 * LIMIT
"""Memory for what is read, its bytes before that, and what reading itself takes."""
CONFIG = {"configurable": {"thread_id": "t"}}
LARGE = 400_000_000
MANY = 100_000


@contextmanager
def bounded(most: int = PEAK, seconds: float = 5) -> Iterator[None]:
    """Fail when what runs inside takes more memory or time."""
    started = time.monotonic()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most
    assert time.monotonic() - started < seconds


@pytest.fixture
def small(open_saver: Callable[..., RedisSaver]) -> RedisSaver:
    """Return a saver with a small bound."""
    return open_saver(max_checkpoint_bytes=LIMIT)


def wrapped(envelope: ThreadEnvelope, name: bytes, method: int, body: bytes) -> bytes:
    """Wrap what is compressed already."""
    header = bytes((1, method))
    return header + _check(header + name, body) + body


@cache
def zeros(method: int, *, declared: bool = True) -> bytes:
    """Compress 400 MB into some kilobytes, a piece at a time."""
    piece = bytes(1_000_000)
    if method == 1:
        stream = zlib.compressobj(1)
        return b"".join(stream.compress(piece) for _ in range(LARGE // len(piece))) + stream.flush()
    coder = zstandard.ZstdCompressor(level=1)
    stream = coder.compressobj(size=LARGE) if declared else coder.compressobj()
    return b"".join(stream.compress(piece) for _ in range(LARGE // len(piece))) + stream.flush()


BOMBS = {"zstd": (2, True), "zstd without a size": (2, False), "zlib": (1, True)}
"""Method and whether the size is declared."""


async def read(saver: RedisSaver, thread: str = "t") -> None:
    """Read a thread in each of the ways that a list, a history and a resume take."""
    config = {"configurable": {"thread_id": thread}}
    for way in (
        lambda: saver.aget_tuple(config),
        lambda: anext(saver.alist(config), None),
        lambda: saver.aget_delta_channel_history(config=config, channels=["a", "c"]),
    ):
        await way()


@pytest.mark.parametrize("kind", "cvwp")
@pytest.mark.parametrize("bomb", BOMBS)
async def test_compressed_bytes_stay_within_the_limit(
    small: RedisSaver, bomb: str, kind: str
) -> None:
    """Record, value, pending write and part; the sentence says what, how large and which option."""
    config = await put(small, "t", {"a": "x" * 2000, "b": 1})
    await small.aput_writes(config, [("b", 2)], "task")
    method, declared = BOMBS[bomb]
    body = zeros(method, declared=declared)
    assert len(body) < 2_000_000
    envelope = small._session.envelope.of("t")
    for name in await each_blob(small):
        if name[:1] == kind.encode():
            await overwrite(small, name, wrapped(envelope, name, method, body))
    with bounded(), pytest.raises(TooLargeError) as refused:
        await small.aget_tuple(CONFIG)
    for part in ("thread 't'", f"allows {LIMIT:,}", "--max-bytes"):
        assert part in str(refused.value)
    assert refused.value.size > LIMIT
    with bounded(), pytest.raises(TooLargeError):
        await anext(small.alist(CONFIG))


async def test_a_frame_that_lies_about_its_size_is_refused(small: RedisSaver) -> None:
    """A few bytes that declare 4 GB reserve nothing, and a small size is held to."""
    await put(small, "t", {"a": "x" * 2000})
    envelope = small._session.envelope.of("t")
    (name,) = [name for name in await each_blob(small) if name[:1] == keys.PART]
    lies = {
        zstandard.ZstdCompressor(write_content_size=False).compress(b"x")[:4]
        + b"\xa0" + (4_000_000_000).to_bytes(4, "little") + b"\x01\x00\x00": TooLargeError,
        zstandard.ZstdCompressor().compress(bytes(1000))[:5] + b"\x10"
        + zstandard.ZstdCompressor().compress(bytes(1000))[6:]: CorruptCheckpointError,
    }  # fmt: skip
    for body, error in lies.items():
        await overwrite(small, name, wrapped(envelope, name, 2, body))
        with bounded(), pytest.raises(error):
            await small.aget_tuple(CONFIG)


def items(item: bytes, count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big") + item * count


TALL = ormsgpack.packb(["builtins", "set", []])
for _ in range(60):
    TALL = ormsgpack.packb(ormsgpack.Ext(0, TALL + bytes(20_000)))
DENSE = {
    "empty dicts": items(b"\x80", MANY),
    "dicts of one": items(b"\x81\x01\x01", MANY),
    "dicts of text": items(b"\x81\xa1a\x01", MANY),
    "empty lists": items(b"\x90", MANY),
    "lists of lists": items(b"\x91\x91\x91\x90", MANY // 3),
    "a wide dict": b"\xdf" + MANY.to_bytes(4, "big")
    + b"".join(b"\xce" + key.to_bytes(4, "big") + b"\x80" for key in range(MANY)),
    "floats": items(b"\xca\x01\x02\x03\x04", MANY),
    "large numbers": items(b"\xcd\x7f\x7f", MANY),
    "short bytes": items(b"\xc4\x02xy", MANY),
    "short text": items(b"\xa2xy", MANY),
    "sets": items(ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(["builtins", "set", []]))),
                  MANY // 10),
    "messages": items(
        ormsgpack.packb(ormsgpack.Ext(5, ormsgpack.packb(
            ["langchain_core.messages.human", "HumanMessage", {"content": ""}]))), MANY // 40),
    "objects in objects": TALL,
    "wide characters": ormsgpack.packb("x" * 1_000_000 + "\U0001f600"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DENSE)
def test_the_memory_of_a_value_is_known_before_it_is_built(kind: str) -> None:
    """What is counted is an upper bound of what is taken, by each of the two counts."""
    body = DENSE[kind]
    counted = _memory_of(body, 10**10)
    AllowlistSerializer().loads_typed(("msgpack", b"\x90"))  # what is imported once
    tracemalloc.start()
    try:
        AllowlistSerializer().loads_typed(("msgpack", body))
    except ValueError:
        assert kind == "objects in objects"
    finally:
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if kind not in {"messages", "sets"}:
        assert taken <= counted + 100_000
    assert taken <= MOST_PER_BYTE * len(body) + 100_000


@pytest.mark.parametrize("kind", [kind for kind in DENSE if kind not in {"messages", "sets"}])
async def test_dense_values_are_refused(small: RedisSaver, kind: str) -> None:
    """A value, whatever it is made of, is not built if it would not fit."""
    await put(small, "t", {"a": "x" * 2000})
    envelope = small._session.envelope.of("t")
    (name,) = [name for name in await each_blob(small) if name[:1] == keys.PART]
    await overwrite(small, name, envelope.wrap(b"msgpack\0" + DENSE[kind], name))
    with bounded(), pytest.raises(CorruptCheckpointError):
        await small.aget_tuple(CONFIG)


@pytest.mark.parametrize("kind", "cvw")
async def test_dense_records_are_refused(small: RedisSaver, kind: str) -> None:
    """The msgpack around values is counted too, before its shape is looked at."""
    config = await put(small, "t", {"a": 1})
    await small.aput_writes(config, [("a", 2)], "task")
    envelope = small._session.envelope.of("t")
    for name in await each_blob(small):
        if name[:1] == kind.encode():
            await overwrite(small, name, envelope.wrap(DENSE["empty dicts"], name))
    with bounded(), pytest.raises(TooLargeError):
        await small.aget_tuple(CONFIG)


async def multiplied(saver: RedisSaver, size: int, times: int) -> None:
    """Store one part, and a value and pending writes that refer to it many times."""
    config = await put(saver, "t", {"a": ["x" * size], "b": 1})
    await saver.aput_writes(config, [("b", 2)], "task")
    envelope = saver._session.envelope.of("t")
    for name, blob in (await each_blob(saver)).items():
        if name.startswith(b"v\0\0a\0"):
            (cell,) = envelope.unpack(blob, name)[1]
            many = [2, [cell] * times]
            await overwrite(saver, name, envelope.pack(many, name))
    for name, blob in (await each_blob(saver)).items():
        if name[:1] == keys.WRITE:
            when, path, _ = envelope.unpack(blob, name)
            await overwrite(saver, name, envelope.pack([when, path, [[0, "b", many]]], name))


async def test_parts_do_not_multiply(small: RedisSaver) -> None:
    """A part is counted as often as a value refers to it."""
    await multiplied(small, 200_000, 2000)
    with bounded(), pytest.raises(TooLargeError, match="channel 'a'"):
        await small.aget_tuple(CONFIG)


async def test_a_history_holds_one_checkpoint_at_a_time(small: RedisSaver) -> None:
    """Many small records that share one large part are read in the memory of one."""
    where = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    versions = {"a": "1"}
    for _ in range(40):
        made = checkpoint({"a": "x" * (LIMIT // 3)}, versions)
        where = await small.aput(where, made, {"step": 0}, {} if _ else versions)
    with bounded():
        assert [
            len(one.checkpoint["channel_values"]["a"]) async for one in small.alist(CONFIG)
        ] == [LIMIT // 3] * 40


async def test_a_page_that_is_too_large_only_together_is_read(small: RedisSaver) -> None:
    """The limit is of a checkpoint, not of how many are read in one round trip."""
    texts = [f"{number}" * (LIMIT // 3) for number in range(6)]
    for text in texts:
        await put(small, "t", {"a": [text[at : at + 900] for at in range(0, len(text), 900)][:800]})
    assert len([one async for one in small.alist(CONFIG)]) == 6


async def test_delta_chains_do_not_multiply(small: RedisSaver) -> None:
    """The writes of all ancestors count together."""
    where = await put(small, "t", {})
    for number in range(30):
        await small.aput_writes(where, [("c", ["x" * 500_000])], f"task-{number}")
        made = checkpoint({}, {"c": f"{number}"})
        where = await small.aput(where, made, {"step": number}, {})
    with bounded(), pytest.raises(TooLargeError):
        await small.aget_delta_channel_history(config=where, channels=["c"])


async def test_pruning_is_bounded(small: RedisSaver) -> None:
    """Records that grow together beyond the limit are refused, and the thread stays."""
    for _ in range(12):
        await put(small, "t", {"a": 1})
    envelope = small._session.envelope.of("t")
    for name, blob in (await each_blob(small)).items():
        if name[:1] == keys.RECORD:
            record = envelope.unpack(blob, name)
            record[1] = dump({"step": 0, "note": "x" * 400_000}, AllowlistSerializer())
            await overwrite(small, name, envelope.pack(record, name))
    with bounded(), pytest.raises(TooLargeError):
        await small.aprune(["t"])
    assert len([one async for one in small.alist(CONFIG)]) == 12


async def chunks(*some: bytes) -> AsyncIterator[bytes]:
    for each in some:
        yield each


async def test_an_import_is_read_in_bounded_memory(
    small: RedisSaver, open_saver: Callable[..., RedisSaver]
) -> None:
    """A field that says it is huge is refused at once; a huge index is not held."""
    await put(small, "t", {"a": 1})
    good = frames(b"".join([chunk async for chunk in small.export_thread("t")]))[:-1]
    head = file_of(good)[:-37]
    with bounded(), pytest.raises(TooLargeError, match="a field of the exported thread"):
        await small.import_thread(
            chunks(head, b"F\xff\xff\xff\xff", *[bytes(LIMIT)] * 50), thread_id="u"
        )
    members = [(b"M", b"%07d" % number) for number in range(15_000)]
    file = file_of([*good, *members])
    with bounded(LIMIT):
        await small.import_thread(
            chunks(*[file[at : at + 10_000] for at in range(0, len(file), 10_000)]), thread_id="v"
        )
    store = small._session.store
    assert await store.call("ZCARD", store.thread("v").index) == 15_000 + sum(
        kind == b"M" for kind, _ in good
    )


async def test_a_larger_limit_reads_what_a_smaller_refuses(
    small: RedisSaver, redis_url: str, open_saver: Callable[..., RedisSaver]
) -> None:
    """By the option, and by the URL, as the sentence says. Nothing was lost."""
    await put(small, "t", {"a": "x" * 2 * LIMIT})
    with pytest.raises(TooLargeError):
        await small.aget_tuple(CONFIG)
    for larger in (
        open_saver(),
        open_saver(f"{redis_url}?max_checkpoint_bytes={8 * LIMIT}", max_checkpoint_bytes=LIMIT),
    ):
        found = await larger.aget_tuple(CONFIG)
        assert found is not None
        assert len(found.checkpoint["channel_values"]["a"]) == 2 * LIMIT
    with pytest.raises(StoreConfigError, match="max_checkpoint_bytes is 0"):
        open_saver(max_checkpoint_bytes=0)


def test_ordinary_values_are_not_looked_into() -> None:
    """Up to half of the limit an upper bound is enough; the other half is counted exactly."""
    allowance = Allowance(1_000_000)
    body = ormsgpack.packb("x" * 5000)
    assert allowance.surely_takes(body)
    assert not allowance.surely_takes(ormsgpack.packb("x" * 5000))
    for _ in range(100):
        allowance.take_value(body, "a value")
    with pytest.raises(TooLargeError, match="a value cannot be read: it takes"):
        allowance.take_value(ormsgpack.packb("x" * 600_000), "a value")
