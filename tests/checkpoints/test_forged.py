"""Reading what somebody forged, in a store or a file, gives a state or a named error."""

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import ormsgpack
import pytest
from pdr_checkpoints import RedisSaver, SaverError
from test_corruption import each_blob, overwrite
from test_saver import put

MAGIC = b"pdr-checkpoints 1\n"
LEAVES = (None, 0, 1, 2, 7, -1, 1.5, True, 2**63, "", "a", b"", b"x", b"p" * 16)
BODIES = (b"msgpack\0\xc0", b"msgpack\0\x81\xa1a\x01", b"msgpack\0", b"json\0{}", b"\xff\0x")


def some_value(rnd: random.Random, depth: int = 0) -> object:
    """Make plain data of any shape."""
    if depth > 3 or rnd.random() < 0.5:
        return rnd.choice(LEAVES + BODIES)
    if rnd.random() < 0.8:
        return [some_value(rnd, depth + 1) for _ in range(rnd.randrange(5))]
    return {"a": some_value(rnd, depth + 1)}


def damaged(rnd: random.Random, data: bytes) -> bytes:
    """Change, cut, add or take away some bytes."""
    at = rnd.randrange(len(data) + 1)
    odd = bytes(rnd.choices([0, 1, 2, 97, 255], k=3))
    return rnd.choice([data[:at], data[:at] + odd + data[at:], data[:at] + odd + data[at + 3 :]])


def forged_body(rnd: random.Random, name: bytes, body: bytes) -> bytes:
    """Make another content for a field, in a shape that is nearly right."""
    if name[:1] == b"p":
        return rnd.choice([*BODIES, b"", b"msgpack\0" + ormsgpack.packb(some_value(rnd))])
    content = ormsgpack.unpackb(body)
    if name[:1] == b"w" and rnd.random() < 0.5:
        content = [1, "path", [[some_value(rnd) for _ in range(3)]]]
    elif rnd.random() < 0.7:
        content[rnd.randrange(len(content))] = some_value(rnd)
    else:
        content = some_value(rnd)
    return ormsgpack.packb(content)


def frames(file: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], len(MAGIC)
    while at < len(file):
        size = int.from_bytes(file[at + 1 : at + 5], "big")
        found.append((file[at : at + 1], file[at + 5 : at + 5 + size]))
        at += 5 + size
    return found


def file_of(some: list[tuple[bytes, bytes]]) -> bytes:
    """Make a file whose digest is right."""
    whole = MAGIC + b"".join(kind + len(body).to_bytes(4, "big") + body for kind, body in some)
    return whole + b"E" + (32).to_bytes(4, "big") + hashlib.sha256(whole).digest()


async def chunks(file: bytes) -> AsyncIterator[bytes]:
    yield file


async def read_in_every_way(saver: RedisSaver, thread: str) -> None:
    """Any error but a saver's own fails the test."""
    config = {"configurable": {"thread_id": thread}}
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: saver.aget_tuple(config),
        lambda: anext(saver.alist(config), None),
        lambda: anext(saver.alist(config, filter={"step": 1}), None),
        lambda: saver.aget_delta_channel_history(config=config, channels=["small", "list"]),
        lambda: saver.thread(thread),
        lambda: saver.acopy_thread(thread, "copy"),
        lambda: saver.adelete_for_runs(["one"]),
        lambda: saver.aprune([thread], strategy="keep_latest"),
    ]
    for call in calls:
        with suppress(SaverError):
            await call()


async def one_thread(saver: RedisSaver) -> None:
    config = await put(saver, "t", {"small": 1, "list": [1, "x" * 3000], "large": "y" * 3000})
    await saver.aput_writes(config, [("small", 2)], "task")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.security
async def test_forged_fields(saver: RedisSaver, seed: int) -> None:
    """With the right checksum, as whoever writes to the store can make it."""
    rnd = random.Random(seed)
    await one_thread(saver)
    blobs, envelope = await each_blob(saver), saver._session.envelope.of("t")
    for _ in range(40):
        name = rnd.choice(sorted(blobs))
        body = forged_body(rnd, name, envelope.unwrap(blobs[name], name))
        await overwrite(saver, name, envelope.wrap(body, name))
        await read_in_every_way(saver, "t")
        for each, blob in blobs.items():
            await overwrite(saver, each, blob)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.security
async def test_forged_files(saver: RedisSaver, seed: int) -> None:
    """With the right digest: ids, names, blobs and members of any form."""
    rnd = random.Random(seed)
    await one_thread(saver)
    good = frames(b"".join([chunk async for chunk in saver.export_thread("t")]))[:-1]
    for _ in range(25):
        some = list(good)
        for _ in range(rnd.randrange(1, 3)):
            at = rnd.randrange(len(some))
            kind, body = some[at]
            some[at : at + rnd.randrange(2)] = [(kind, damaged(rnd, body))]
        file = file_of(some)
        with suppress(SaverError):
            await saver.import_thread(chunks(file), thread_id="forged")
        with suppress(SaverError):
            await saver.import_thread(chunks(damaged(rnd, file)), thread_id="cut")
        await read_in_every_way(saver, "forged")
        for thread in ("forged", "cut", "copy"):
            await saver.adelete_thread(thread)
