r"""Copies a thread, or carries it to another Redis as a file.

    file   = magic, frame*, end
    magic  = "pdr-checkpoints 1\n"
    frame  = kind (1 byte), length (4 bytes, big-endian), that many bytes
             T thread id · F field: length of its name (4 bytes), name, blob · M index member
    end    = a frame of kind E: SHA-256 of all that came before

Blobs travel as they are stored: compressed, and encrypted with the keys of the source. The index
is written last, so that a copy or import that is cut short shows no checkpoint at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from pdr_checkpoints import keys
from pdr_checkpoints.errors import CorruptCheckpointError, ThreadNotFoundError, ThreadTakenError
from pdr_checkpoints.keys import Keyspace
from pdr_checkpoints.records import check_head
from pdr_checkpoints.store import Command, Store
from pdr_checkpoints.writer import expiry, registration

MAGIC: Final = b"pdr-checkpoints 1\n"
SCAN: Final = 64
"""Fields asked for at a time: drafts of 32 kB make that about 1 MB."""
FRAME_HEAD: Final = 5
THREAD, FIELD, MEMBER, END = b"T", b"F", b"M", b"E"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Moves whole threads of one store."""

    store: Store
    keyspace: Keyspace
    ttl_s: float | None

    async def copy(self, source_id: str, target_id: str) -> None:
        """Copy every checkpoint and write of a thread into another.

        Raises:
            UnknownThreadError: The source has no checkpoints.
        """
        members = await self._members(source_id)
        target = self.keyspace.thread(target_id)
        async for batch in self._fields(source_id):
            await self.store.one("HSET", target.data, *_flat(batch))
        await self._finish(target_id, members)

    async def export_thread(self, thread_id: str) -> AsyncIterator[bytes]:
        """Yield a thread as the bytes of a file.

        Raises:
            UnknownThreadError: The thread has no checkpoints.
        """
        members = await self._members(thread_id)
        head = MAGIC + _frame(THREAD, keys.encode(thread_id))
        digest = hashlib.sha256(head)
        yield head
        seen: set[bytes] = set()  # a scan may give a field twice
        async for batch in self._fields(thread_id):
            for name, blob in batch.items():
                if name not in seen:
                    seen.add(name)
                    frame = _frame(FIELD, len(name).to_bytes(4, "big") + name + blob)
                    digest.update(frame)
                    yield frame
        for member in members:
            frame = _frame(MEMBER, member)
            digest.update(frame)
            yield frame
        yield _frame(END, digest.digest())

    async def import_thread(
        self, chunks: AsyncIterable[bytes], thread_id: str | None = None
    ) -> str:
        """Store an exported thread, under its own id when none is given, and return the id.

        Raises:
            CorruptCheckpointError: The file is cut, altered or something else; nothing is kept.
            ThreadExistsError: The thread is there already.
        """
        reader = _FrameReader(chunks)
        await reader.magic()
        kind, body = await reader.frame()
        if kind != THREAD:
            raise CorruptCheckpointError("the exported thread", "it does not begin with an id")
        thread_id = keys.decode(body) if thread_id is None else thread_id
        target = self.keyspace.thread(thread_id)
        if await self.store.one("EXISTS", target.data, target.index):
            raise ThreadTakenError(thread_id)
        try:
            members = await self._take(reader, thread_id)
        except BaseException:
            await self.store.one("UNLINK", target.data)
            raise
        await self._finish(thread_id, members)
        return thread_id

    async def _take(self, reader: _FrameReader, thread_id: str) -> list[bytes]:
        target = self.keyspace.thread(thread_id)
        members: list[bytes] = []
        while True:
            kind, body = await reader.frame()
            if kind == FIELD:
                size = int.from_bytes(body[:4], "big")
                name, blob = body[4 : 4 + size], body[4 + size :]
                if name == keys.HEAD:
                    check_head(blob, thread_id)
                await self.store.one("HSET", target.data, name, blob)
            elif kind == MEMBER:
                members.append(body)
            elif kind == END:
                return members
            else:
                raise CorruptCheckpointError("the exported thread", f"frame kind {kind!r}")

    async def _members(self, thread_id: str) -> list[bytes]:
        # Before the fields: all that an indexed checkpoint refers to was stored with it.
        thread = self.keyspace.thread(thread_id)
        members: list[bytes] = await self.store.one("ZRANGE", thread.index, 0, -1)
        if not members:
            raise ThreadNotFoundError(thread_id)
        check_head(await self.store.one("HGET", thread.data, keys.HEAD), thread_id)
        return members

    async def _fields(self, thread_id: str) -> AsyncIterator[dict[bytes, bytes]]:
        data_key = self.keyspace.thread(thread_id).data
        cursor = 0
        while True:
            cursor, batch = await self.store.one("HSCAN", data_key, cursor, "COUNT", SCAN)
            if batch:
                yield batch
            if int(cursor) == 0:
                return

    async def _finish(self, thread_id: str, members: list[bytes]) -> None:
        target = self.keyspace.thread(thread_id)
        scored = [item for member in members for item in (b"0", member)]
        commands: list[Command] = [("ZADD", target.index, *part) for part in keys.chunks(scored)]
        await self.store.one(*registration(self.keyspace, thread_id))
        await self.store.write(target, commands + expiry(target, self.ttl_s), None)


class _FrameReader:
    """Takes frames out of chunks of any size, and checks the digest at the end."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = aiter(chunks)
        self._buffer = bytearray()
        self._digest = hashlib.sha256()

    async def magic(self) -> None:
        found = await self._take(len(MAGIC))
        if found != MAGIC:
            raise CorruptCheckpointError(
                "the exported thread", f"it begins with {found!r} where {MAGIC!r} is expected"
            )
        self._digest.update(found)

    async def frame(self) -> tuple[bytes, bytes]:
        head = await self._take(FRAME_HEAD)
        body = await self._take(int.from_bytes(head[1:], "big"))
        if head[:1] == END:
            if body != self._digest.digest():
                raise CorruptCheckpointError("the exported thread", "its digest differs")
        else:
            self._digest.update(head + body)
        return head[:1], body

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                self._buffer += await anext(self._chunks)
            except StopAsyncIteration:
                raise CorruptCheckpointError(
                    "the exported thread", f"it ends {size - len(self._buffer)} bytes too early"
                ) from None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _frame(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "big") + body


def _flat(fields: Mapping[bytes, bytes]) -> list[bytes]:
    return [item for pair in fields.items() for item in pair]
