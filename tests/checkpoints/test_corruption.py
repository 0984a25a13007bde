"""Stored bytes that are not what was written give a named error, never a wrong state."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import ormsgpack
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pdr_checkpoints import (
    CorruptCheckpointError,
    DecryptionError,
    FormatVersionError,
    RedisSaver,
    StoreConfigError,
    UnknownSerializationError,
    keys,
)
from test_saver import put

CONFIG = {"configurable": {"thread_id": "t"}}
OLD, NEW = b"o" * 32, b"n" * 32
TEXT = "a long enough text to be a part " * 100


async def store_one(saver: RedisSaver) -> None:
    config = await put(saver, "t", {"small": 1, "large": TEXT})
    await saver.aput_writes(config, [("small", 2)], "task")


async def each_blob(saver: RedisSaver) -> dict[bytes, bytes]:
    data = saver._session.store.thread("t").data
    fields = await saver._session.store.call("HGETALL", data)
    return {name: blob for name, blob in fields.items() if name not in (keys.HEAD, keys.UPDATED)}


async def overwrite(saver: RedisSaver, name: bytes, blob: bytes | None) -> None:
    data = saver._session.store.thread("t").data
    if blob is None:
        await saver._session.store.call("HDEL", data, name)
    else:
        await saver._session.store.call("HSET", data, name, blob)


def flip(blob: bytes) -> bytes:
    return blob[:-1] + bytes([blob[-1] ^ 1])


@pytest.mark.parametrize("encryption_keys", [(), (OLD,)], ids=["plain", "encrypted"])
@pytest.mark.parametrize(
    "damage",
    [flip, lambda blob: blob[:-3], lambda blob: blob[:1], lambda blob: b"", lambda blob: None],
    ids=["flipped", "cut", "one byte", "empty", "gone"],
)
async def test_every_damaged_blob_is_reported(
    open_saver: Callable[..., RedisSaver],
    encryption_keys: tuple[bytes, ...],
    damage: Callable[[bytes], bytes | None],
) -> None:
    """Record, value, pending write and part: each damage is found, and repaired by the original."""
    saver = open_saver(encryption_keys=encryption_keys)
    await store_one(saver)
    blobs = await each_blob(saver)
    assert {name[:1] for name in blobs} == {b"c", b"v", b"w", b"p"}
    for name, blob in blobs.items():
        await overwrite(saver, name, damage(blob))
        with pytest.raises(CorruptCheckpointError):
            await saver.aget_tuple(CONFIG)
        await overwrite(saver, name, blob)
        assert await saver.aget_tuple(CONFIG) is not None


@pytest.mark.parametrize("encryption_keys", [(), (OLD,)], ids=["plain", "encrypted"])
@pytest.mark.security
async def test_blobs_do_not_change_places(
    open_saver: Callable[..., RedisSaver], encryption_keys: tuple[bytes, ...]
) -> None:
    """A whole blob in the field of another is as corrupt as a cut one."""
    saver = open_saver(encryption_keys=encryption_keys)
    await put(saver, "t", {"a": 1, "b": 2})
    one, two = [name for name in await each_blob(saver) if name[:1] == b"v"]
    await overwrite(saver, one, (await each_blob(saver))[two])
    with pytest.raises(CorruptCheckpointError, match="channel value"):
        await saver.aget_tuple(CONFIG)


@pytest.mark.parametrize("item", [None, 7])
@pytest.mark.security
async def test_blob_of_an_unknown_shape_is_refused(saver: RedisSaver, item: object) -> None:
    """A blob with the right checksum and other content is refused by name."""
    await store_one(saver)
    envelope = saver._session.envelope.of("t")
    for name, blob in (await each_blob(saver)).items():
        if name[:1] == b"p":
            continue
        size = len(ormsgpack.unpackb(envelope.unwrap(blob, name)))
        await overwrite(saver, name, envelope.wrap(ormsgpack.packb([item] * size), name))
        with pytest.raises(CorruptCheckpointError, match=r"unknown shape|is unknown"):
            await saver.aget_tuple(CONFIG)
        await overwrite(saver, name, blob)


@dataclass
class Labelled:
    """Serialises as LangGraph does, but under a type of its own for some values."""

    labels: Callable[[object], bool]

    def dumps_typed(self, obj: object) -> tuple[str, bytes]:
        kind, data = JsonPlusSerializer().dumps_typed(obj)
        return ("house" if self.labels(obj) else kind), data

    def loads_typed(self, data: tuple[str, bytes]) -> object:
        return JsonPlusSerializer().loads_typed(("msgpack", data[1]))


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (lambda value: value == 1, r"channel 'small' of checkpoint '.+' of thread 't'"),
        (lambda value: value == TEXT, r"channel 'large' of checkpoint '.+' of thread 't'"),
        (lambda value: value == 2, r"pending write to channel 'small' of checkpoint '.+' of"),
        (lambda value: isinstance(value, dict) and "step" in value, r"metadata of checkpoint '.+'"),
        (lambda value: isinstance(value, dict) and "v" in value, r"checkpoint '.+' of thread 't'"),
    ],
    ids=["value", "part", "pending write", "metadata", "checkpoint"],
)
async def test_unknown_serialisation_is_named(
    open_saver: Callable[..., RedisSaver], labels: Callable[[object], bool], named: str
) -> None:
    """A value of another serializer is refused with its place, its type and the remedy."""
    own = open_saver(serde=Labelled(labels))
    await store_one(own)
    remedy = "'house': open the saver with the serde that wrote it"
    with pytest.raises(UnknownSerializationError, match=f"^{named}.* cannot be read.+{remedy}"):
        await open_saver().aget_tuple(CONFIG)
    assert await own.aget_tuple(CONFIG) is not None


async def test_later_blob_format_is_refused(saver: RedisSaver) -> None:
    """A blob of format 2 is named as such."""
    await store_one(saver)
    for name, blob in (await each_blob(saver)).items():
        await overwrite(saver, name, b"\2" + blob[1:])
    with pytest.raises(FormatVersionError, match="format version 2, this release reads 1"):
        await saver.aget_tuple(CONFIG)


async def test_later_thread_format_is_refused(saver: RedisSaver) -> None:
    """A thread of layout 2 is refused by reading, pruning, copying and exporting, and listed so."""
    await store_one(saver)
    await overwrite(saver, keys.HEAD, b"2 0")
    calls: list[Callable[[], Any]] = [
        lambda: saver.aget_tuple(CONFIG),
        lambda: saver.aprune(["t"]),
        lambda: saver.acopy_thread("t", "u"),
        lambda: anext(saver.export_thread("t")),
    ]
    for call in calls:
        with pytest.raises(FormatVersionError, match="thread 't'"):
            await call()
    (info,) = await saver.threads()
    assert info.trouble == "it has format version 2, this release reads 1: upgrade pdr-graph"


@pytest.mark.security
async def test_wrong_key_is_named(open_saver: Callable[..., RedisSaver]) -> None:
    """A reader without the key, or with no key, is told so."""
    await store_one(open_saver(encryption_keys=[OLD]))
    with pytest.raises(DecryptionError, match="not in encryption_keys"):
        await open_saver(encryption_keys=[NEW]).aget_tuple(CONFIG)
    with pytest.raises(DecryptionError, match="encryption_keys is not set"):
        await open_saver().aget_tuple(CONFIG)


async def test_rotated_key_still_reads(open_saver: Callable[..., RedisSaver]) -> None:
    """Checkpoints of an old key stay readable; new ones need the new key only."""
    await put(open_saver(encryption_keys=[OLD]), "t", {"a": TEXT, "n": 1})
    rotated = open_saver(encryption_keys=[NEW, OLD])
    await put(rotated, "t", {"a": TEXT, "n": 2})
    history = [found.checkpoint["channel_values"] async for found in rotated.alist(CONFIG)]
    assert history == [{"a": TEXT, "n": n} for n in (2, 1)]
    latest = await open_saver(encryption_keys=[NEW]).aget_tuple(CONFIG)
    assert latest is not None
    assert latest.checkpoint["channel_values"] == {"a": TEXT, "n": 2}


async def each_reading(saver: RedisSaver, thread: str = "t") -> None:
    """Read a thread in every way; each must be refused."""
    config = {"configurable": {"thread_id": thread}}
    calls: list[Callable[[], Any]] = [
        lambda: saver.aget_tuple(config),
        lambda: anext(saver.alist(config)),
        lambda: anext(saver.alist(config, filter={"step": 1})),
        lambda: saver.aprune([thread], strategy="keep_latest"),
        lambda: saver.acopy_thread(thread, "elsewhere"),
    ]
    for call in calls:
        with pytest.raises(DecryptionError):
            await call()


def sealed_by_an_early_release(saver: RedisSaver, blob: bytes, name: bytes) -> bytes:
    """Make an encrypted blob of version 1, which knows of no thread."""
    envelope = saver._session.envelope
    assert envelope.keyring is not None
    body, method = envelope.compress(envelope.of("t").unwrap(blob, name))
    header = bytes((1, method | 16))
    return header + envelope.keyring.seal(body, header + name)


@pytest.mark.security
async def test_encryption_cannot_be_taken_off(open_saver: Callable[..., RedisSaver]) -> None:
    """With keys, plain bytes are refused in whatever field they are, and read where it is said."""
    saver, plain = open_saver(encryption_keys=[OLD]), open_saver()
    await store_one(saver)
    blobs = await each_blob(saver)
    assert {name[:1] for name in blobs} == {b"c", b"v", b"w", b"p"}
    for name, blob in blobs.items():
        body = saver._session.envelope.of("t").unwrap(blob, name)
        await overwrite(saver, name, plain._session.envelope.of("t").wrap(body, name))
        with pytest.raises(DecryptionError, match=r"is not encrypted.+ with read_older=True"):
            await saver.aget_tuple(CONFIG)
        older = open_saver(encryption_keys=[OLD], read_older=True)
        assert await older.aget_tuple(CONFIG) is not None
        await overwrite(saver, name, blob)
    await put(plain, "u", {"a": 1})
    await each_reading(saver, "u")


async def test_an_older_store_is_sealed_anew(open_saver: Callable[..., RedisSaver]) -> None:
    """What is plain, or bound to no thread, is read by an option, and a copy needs it no longer."""
    saver = open_saver(encryption_keys=[OLD])
    await store_one(saver)
    expected = await saver.aget_tuple(CONFIG)
    assert expected is not None
    for name, blob in (await each_blob(saver)).items():
        await overwrite(saver, name, sealed_by_an_early_release(saver, blob, name))
    with pytest.raises(DecryptionError, match=r"early release.+ with read_older=True"):
        await saver.aget_tuple(CONFIG)
    await each_reading(saver)
    older = open_saver(encryption_keys=[OLD], read_older=True)
    found = await older.aget_tuple(CONFIG)
    assert found is not None
    assert (found.checkpoint, found.pending_writes) == (
        expected.checkpoint,
        expected.pending_writes,
    )
    await older.acopy_thread("t", "anew")
    copied = await saver.aget_tuple({"configurable": {"thread_id": "anew"}})
    assert copied is not None
    assert (copied.checkpoint, copied.metadata) == (expected.checkpoint, expected.metadata)
    await put(open_saver(), "plain", {"a": TEXT})
    await older.acopy_thread("plain", "sealed")
    assert await saver.aget_tuple({"configurable": {"thread_id": "sealed"}}) is not None


@pytest.mark.security
async def test_a_record_does_not_change_threads(open_saver: Callable[..., RedisSaver]) -> None:
    """Another's whole thread, or one field of it, in the place of this one's is refused."""
    saver = open_saver(encryption_keys=[OLD])
    await store_one(saver)
    await saver.acopy_thread("t", "bob")
    mine, others = (saver._session.store.thread(thread) for thread in ("t", "bob"))
    call = saver._session.store.call
    for name, blob in (await each_blob(saver)).items():
        theirs = await call("HGET", others.data, name)
        await overwrite(saver, name, theirs)
        with pytest.raises(DecryptionError, match="of another field or thread"):
            await saver.aget_tuple(CONFIG)
        await overwrite(saver, name, blob)
    assert await saver.aget_tuple(CONFIG) is not None
    for source, target in ((mine.data, others.data), (mine.index, others.index)):
        await call("COPY", source, target, "REPLACE")
    await each_reading(saver, "bob")


async def exported(saver: RedisSaver, thread: str) -> list[bytes]:
    return [chunk async for chunk in saver.export_thread(thread)]


async def test_an_encrypted_thread_moves_by_its_key(open_saver: Callable[..., RedisSaver]) -> None:
    """A file is read under its own name by anybody with the key, and renamed by them alone."""
    saver = open_saver(encryption_keys=[OLD])
    await store_one(saver)
    chunks = await exported(saver, "t")

    async def file() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    await saver.import_thread(file(), thread_id="renamed")
    keyless = open_saver(prefix=saver.options.prefix + "-other")
    with pytest.raises(DecryptionError, match="encryption_keys is not set"):
        await keyless.import_thread(file(), thread_id="renamed")
    assert await keyless.thread("renamed") is None
    await keyless.import_thread(file())
    there = open_saver(prefix=saver.options.prefix + "-other", encryption_keys=[OLD])
    expected = await saver.aget_tuple(CONFIG)
    for each, thread in ((saver, "renamed"), (there, "t")):
        found = await each.aget_tuple({"configurable": {"thread_id": thread}})
        assert found is not None
        assert expected is not None
        assert (found.checkpoint, found.pending_writes) == (
            expected.checkpoint,
            expected.pending_writes,
        )


@pytest.mark.security
async def test_encryption_leaves_no_text(open_saver: Callable[..., RedisSaver]) -> None:
    """The stored bytes contain no values, no metadata and no plain digests."""
    saver = open_saver(encryption_keys=[OLD], compression="none")
    plain = open_saver(prefix=saver.options.prefix + "-plain", compression="none")
    for one in (saver, plain):
        await put(one, "t", {"secret": TEXT})
    stored = b"".join((await each_blob(saver)).values())
    assert b"long enough" not in stored
    assert b"long enough" in b"".join((await each_blob(plain)).values())
    parts = [{name for name in await each_blob(one) if name[:1] == b"p"} for one in (saver, plain)]
    assert not parts[0] & parts[1]


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
async def test_any_compression_reads_any_other(
    open_saver: Callable[..., RedisSaver], compression: str
) -> None:
    """Every compression is read, whatever the setting is now."""
    await put(open_saver(compression=compression), "t", {"a": TEXT})
    for other in ("none", "zlib", "zstd"):
        found = await open_saver(compression=other).aget_tuple(CONFIG)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": TEXT}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"encryption_keys": [b"short"]}, "has 5 bytes, AES-256 takes 32"),
        ({"compression": "lzma"}, "compression is 'lzma', it can be none, zlib, zstd"),
        ({"prefix": "{a}"}, "prefix '{a}'"),
        ({"ttl_s": 0}, "ttl_s is 0"),
        ({"max_connections": 0}, "max_connections is 0"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], sentence: str) -> None:
    """One sentence names the option and its value."""
    from pdr_checkpoints import SaverOptions

    with pytest.raises(StoreConfigError, match=sentence):
        RedisSaver("redis://127.0.0.1", options=SaverOptions(**options))
