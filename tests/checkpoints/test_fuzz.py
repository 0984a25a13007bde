"""Stored bytes and files of any content: named errors only, in bounded memory.

What is drawn are changes of what was really stored: of the bytes, of a body below a right checksum,
of the msgpack in it. `FUZZ_EXAMPLES=20000` looks for longer.
"""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import numpy as np
import ormsgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langgraph.types import Command, Interrupt, Send
from pdr_checkpoints import AllowlistSerializer, CorruptCheckpointError, RedisSaver, SaverError
from pdr_checkpoints.envelope import COMPRESSIONS, Envelope
from pdr_checkpoints.records import (
    CheckpointRecord,
    Place,
    Writes,
    assemble,
    dump,
    lay_out,
    load,
    ordered_writes,
    references,
    unpack_cell,
)
from test_forged import chunks, file_of, frames, one_thread, read_in_every_way
from test_saver import checkpoint

pytestmark = pytest.mark.security

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
QUICK = settings(
    max_examples=EXAMPLES, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ
)
LIMIT = 1_000_000
PEAK = 8 * LIMIT
SERDE = AllowlistSerializer()
PLACE = Place("t", "ns", "1f1eb4a4")
VALUES = (
    "x" * 1500,
    {"drafts": [{"index": 1, "text": "long " * 300, "seconds": 0.5}], 1: None},
    [
        HumanMessage("hello", id="a"),
        AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}]),
    ],
    AIMessageChunk('{"a', tool_call_chunks=[{"name": "f", "args": '{"a', "id": "1", "index": 0}]),
    [Send("node", {"a": 1}), Command(goto="b"), Interrupt(value="why", id="i")],
    {1, "a", (2, 3)},
    np.arange(12, dtype="f4").reshape(3, 4),
    [datetime(2026, 1, 1, tzinfo=UTC), UUID(int=5), Decimal("1.5"), b"bytes"],
    [[[[["deep"]]]]] * 20,
)
BODIES = tuple(dump(value, SERDE) for value in VALUES)
CHANGES = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["set", "insert", "cut", "end", "repeat", "length"]),
        st.binary(min_size=1, max_size=6)
        | st.sampled_from(
            [b"\xdd\xff\xff\xff\xff", b"\xdf\x00\xff\xff\xff", b"\xc9\x00\x01\x00\x00"]
        )
        | st.sampled_from([b"\x81", b"\x91", b"\xc7\x05\x05", b"\xd4\x00", b"json\0", b"null\0"]),
    ),
    max_size=4,
)


def changed(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    """Apply changes at relative places."""
    for part, how, some in changes:
        at = int(part * len(data))
        match how:
            case "set":
                data = data[:at] + some + data[at + len(some) :]
            case "insert":
                data = data[:at] + some + data[at:]
            case "cut":
                data = data[:at] + data[at + 3 * len(some) :]
            case "end":
                data = data[:at]
            case "repeat":
                data = data[:at] + data[at : at + 40] * 50 + data[at + 40 :]
            case _:
                data = (
                    data[:at] + bytes([(data[at] + 1) % 256]) + data[at + 1 :]
                    if at < len(data)
                    else data
                )
    return data


@pytest.fixture(scope="module", autouse=True)
def traced() -> Iterator[None]:
    """What is imported once is not counted."""
    for body in BODIES:
        load(body, SERDE, "a value", Envelope().allowance())
    tracemalloc.start()
    yield
    tracemalloc.stop()


def within(call: Callable[[], object]) -> None:
    """Call; any error but the saver's own fails, and so does memory beyond the limit."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    told = ""
    try:
        call()
    except CorruptCheckpointError as error:
        told = str(error)
    assert len(told) < 2000
    assert tracemalloc.get_traced_memory()[1] - before < PEAK


@QUICK
@given(body=st.sampled_from(BODIES) | st.binary(max_size=60), changes=CHANGES)
def test_values(body: bytes, changes: list[tuple[float, str, bytes]]) -> None:
    """A serialised value of any bytes becomes a value or a named error."""
    allowance = Envelope(max_bytes=LIMIT).allowance
    within(lambda: load(changed(body, changes), SERDE, "a value", allowance()))


def stored(envelope: Envelope) -> dict[bytes, bytes]:
    """Make the blobs of a checkpoint, by field: as a writer does."""
    own = envelope.of("t")
    made = checkpoint({}, {f"c{number}": "1" for number in range(len(VALUES))})
    bare = {key: value for key, value in made.items() if key != "channel_values"}
    record = CheckpointRecord(dump(bare, SERDE), dump({"step": 0}, SERDE), None, ["c0", "c1"])
    blobs = {PLACE.record: record.pack(own, PLACE.record)}
    for number, value in enumerate(VALUES):
        name = PLACE.cell(f"c{number}", "1")
        cell, parts = lay_out(value, SERDE, envelope.digest)
        blobs[name] = own.pack(cell, name)
        blobs |= {b"p" + digest: own.wrap(body, b"p" + digest) for digest, body in parts.items()}
        name = PLACE.writes(f"task{number}", 1)
        blobs[name] = Writes(1, "path", [(0, "c", cell)]).pack(own, name)
    return blobs


def read_blob(envelope: Envelope, name: bytes, blob: bytes) -> object:
    """Read a field the way that its kind is read."""
    own, allowance = envelope.of("t"), envelope.allowance()
    if name[:1] == b"c":
        record = CheckpointRecord.unpack(blob, own, name, allowance)
        return record.bare(SERDE, PLACE, allowance), record.facts(SERDE, PLACE, allowance)
    if name[:1] == b"p":
        return load(own.unwrap(blob, name, allowance), SERDE, "a part", allowance)
    if name[:1] == b"v":
        cells = [unpack_cell(blob, own, name, allowance)]
    else:
        cells = [cell for *_, cell in ordered_writes({name: blob}, own, allowance)]
    parts = {digest: BODIES[0] for cell in cells for digest in references(cell)}
    return [assemble(cell, parts, SERDE, "a value", allowance) for cell in cells]


ENVELOPES = {name: Envelope(name, max_bytes=LIMIT) for name in COMPRESSIONS} | {
    "sealed": Envelope(encryption_keys=[b"k" * 32], max_bytes=LIMIT)
}
STORED = {name: stored(envelope) for name, envelope in ENVELOPES.items()}
FIELDS = st.sampled_from([(kind, name) for kind, blobs in STORED.items() for name in blobs])


@QUICK
@given(field=FIELDS, changes=CHANGES, below=st.booleans())
def test_fields(
    field: tuple[str, bytes], changes: list[tuple[float, str, bytes]], below: bool
) -> None:
    """A blob, or what is below its checksum and compression, with any changes."""
    kind, name = field
    envelope, blob = ENVELOPES[kind], STORED[kind][name]
    if below:
        own = envelope.of("t")
        blob = own.wrap(changed(own.unwrap(blob, name), changes), name)
    else:
        blob = changed(blob, changes)
    within(lambda: read_blob(envelope, name, blob))


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(
    max_size=5
) | st.binary(max_size=20) | st.sampled_from(BODIES)  # fmt: skip
SHAPES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=12,
)


@QUICK
@given(field=FIELDS, content=SHAPES, at=st.integers(0, 3))
def test_shapes(field: tuple[str, bytes], content: object, at: int) -> None:
    """Good msgpack of any shape, in place of a field's content or of a part of it."""
    kind, name = field
    envelope = ENVELOPES[kind]
    own = envelope.of("t")
    if name[:1] != b"p" and at < 3:
        whole = own.unpack(STORED[kind][name], name)
        whole[at % len(whole)] = content
        content = whole
    blob = own.wrap(ormsgpack.packb(content), name)
    within(lambda: read_blob(envelope, name, blob))


@settings(
    QUICK,
    max_examples=max(12, EXAMPLES // 15),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
async def test_imports(saver: RedisSaver, data: st.DataObject) -> None:
    """A file with any changes, with a right digest or not, is a thread or a named error."""
    if await saver.thread("t") is None:
        await one_thread(saver)
    good = frames(b"".join([chunk async for chunk in saver.export_thread("t")]))[:-1]
    some = list(good)
    for at in data.draw(st.lists(st.integers(0, len(some) - 1), max_size=3)):
        kind, body = some[at]
        some[at] = (kind, changed(body, data.draw(CHANGES)))
    file = file_of(some)
    if data.draw(st.booleans()):
        file = changed(file, data.draw(CHANGES))
    try:
        await saver.import_thread(chunks(file), thread_id="forged")
    except SaverError:
        assert await saver.thread("forged") is None
    await read_in_every_way(saver, "forged")
    for thread in ("forged", "copy"):
        await saver.adelete_thread(thread)
