"""Whole threads: listed, deleted, copied, carried to another Redis as a file.

Threads are listed without a scan of keys, from a registry that every checkpoint refreshes. The
package's docstring describes the file. A copy or an import that is cut short shows nothing.
"""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from langgraph.checkpoint.base import BaseCheckpointSaver

from pdr_checkpoints import keys
from pdr_checkpoints.errors import (
    CorruptCheckpointError,
    StoreRefusedError,
    ThreadNotFoundError,
    ThreadTakenError,
    TooLargeError,
)
from pdr_checkpoints.lease import holder_of
from pdr_checkpoints.records import check_head
from pdr_checkpoints.registry import Arrival, forget
from pdr_checkpoints.session import LoopSession, LoopSessions, SaverOptions
from pdr_checkpoints.store import Store

PAGE: Final = 50
"""Threads asked for at a time."""
SAMPLES: Final = 1000
"""Fields that the size of a thread is computed from: exact up to so many, else an estimate."""
MAGIC: Final = b"pdr-checkpoints 1\n"
SCAN: Final = 64
"""Fields asked for at a time: drafts of 32 kB make that about 1 MB."""
FRAME_HEAD: Final = 5
"""Bytes of a frame's kind and length."""
FIELD_NAMES: Final = """
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 250)
local names = {}
for at = 1, #found[2], 2 do names[#names + 1] = found[2][at] end
return {found[1], names}
"""
"""A page of the names of a hash's fields; HSCAN itself can leave out values since Redis 7.4."""
FRAME_MORE: Final = 65_536
"""Most bytes of a field beside its value: its name, and the envelope."""
THREAD, FIELD, MEMBER, END = b"T", b"F", b"M", b"E"
EXPORTED: Final = "the exported thread"


@dataclass(frozen=True, slots=True)
class ThreadInfo:
    """One thread, as `pdr-graph threads` shows it."""

    thread_id: str
    num_checkpoints: int
    num_bytes: int | None
    """Memory that the server uses for it, an estimate where the thread has more than a thousand
    fields; None where the server does not say."""
    created: datetime
    updated: datetime
    holder: str | None
    """Who runs it now (host:pid); None when nobody does."""
    expires_in_s: float | None
    """Seconds until it expires if nothing is written; None when it is kept."""
    trouble: str | None = None
    """Why nothing else is known of it; None when it can be described."""


class ThreadMethods(BaseCheckpointSaver[str]):
    """The methods of a saver that list, delete, copy, export and import threads."""

    options: SaverOptions
    _sessions: LoopSessions

    @property
    def _session(self) -> LoopSession:
        return self._sessions.get()

    @property
    def _store(self) -> Store:
        return self._session.store

    async def threads(self, limit: int | None = None) -> list[ThreadInfo]:
        """Describe up to `limit` threads, the last written first; no key is scanned for."""
        sweeper = self._session.sweeper
        sweeper.nudge(at_once=True)
        found: list[ThreadInfo] = []
        gone: list[bytes] = []
        async for thread_id in self.thread_ids():
            if limit is not None and len(found) >= limit:
                break
            info = await self.thread(thread_id)
            if info is None:
                gone.append(keys.encode(thread_id))
            else:
                found.append(info)
        await sweeper.settle(gone)
        return sorted(found, key=lambda info: info.updated, reverse=True)

    async def thread(self, thread_id: str) -> ThreadInfo | None:
        """Describe one thread; None when it has no checkpoints.

        A thread whose description is damaged, or of a newer release, has only a `trouble`.
        """
        try:
            return await self._info(str(thread_id))
        except CorruptCheckpointError as error:
            return _odd(thread_id, error.why)
        except StoreRefusedError as error:
            if "WRONGTYPE" not in error.reply:
                raise
            return _odd(thread_id, "its keys hold something else")

    async def _info(self, thread_id: str) -> ThreadInfo | None:
        thread = self._store.thread(thread_id)
        low, high = keys.below(keys.RECORD)
        (head, updated), count, held, ttl_ms = await self._store.pipeline(
            [
                ("HMGET", thread.data, keys.HEAD, keys.UPDATED),
                ("ZLEXCOUNT", thread.index, low, high),
                ("GET", thread.lease),
                ("PTTL", thread.data),
            ]
        )
        if head is None or updated is None:
            return None
        try:
            created = _time(check_head(head, thread_id))
            latest = _time(int(updated.split()[0]))
        except (IndexError, OverflowError, OSError, ValueError) as error:
            if isinstance(error, CorruptCheckpointError):
                raise
            raise CorruptCheckpointError(f"thread {thread_id!r}", "its times are none") from error
        return ThreadInfo(
            thread_id=thread_id,
            num_checkpoints=count,
            num_bytes=await _memory(self._store, [thread.data, thread.index]),
            created=created,
            updated=latest,
            holder=None if held is None else holder_of(held),
            expires_in_s=None if ttl_ms < 0 else ttl_ms / 1000,
        )

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove all that is stored of a thread, except a lease that is held."""
        thread_id = str(thread_id)
        # A change under way, whose caller may be cancelled, would bring a part of the thread back.
        await self._session.writer.batcher.settle(thread_id)
        thread = self._store.thread(thread_id)
        await self._store.call("UNLINK", thread.data, thread.index)
        await forget(self._store, thread_id, self.options.ttl_s)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints and writes of a thread into another, sealed anew where they are.

        Raises:
            ThreadNotFoundError: The source has no checkpoints.
            DecryptionError: They are encrypted, and no key opens them.
        """
        source_id, target_id = str(source_thread_id), str(target_thread_id)
        members = await _members(self._store, source_id)
        arrival = Arrival(self._store, target_id, self.options.ttl_s)
        if await self._store.call("EXISTS", self._store.thread(target_id).index):
            arrival.join()
        try:
            async for batch in _fields(self._store, source_id):
                for name, blob in batch.items():
                    moved = self._moved(name, blob, source_id, target_id)
                    await arrival.add_field(name, moved)
            for member in members:
                await arrival.add_member(member)
            await arrival.show()
        except BaseException:
            await arrival.drop()
            raise

    async def export_thread(self, thread_id: str) -> AsyncIterator[bytes]:
        """Yield a thread as the bytes of a file, which `import_thread` reads.

        Raises:
            ThreadNotFoundError: The thread has no checkpoints.
        """
        thread_id = str(thread_id)
        members = await _members(self._store, thread_id)
        digest = hashlib.sha256()

        def hashed(chunk: bytes) -> bytes:
            digest.update(chunk)
            return chunk

        yield hashed(MAGIC + _frame(THREAD, keys.encode(thread_id)))
        seen: set[bytes] = set()  # a scan may give a field twice
        async for batch in _fields(self._store, thread_id):
            for name, blob in batch.items():
                if name not in seen:
                    seen.add(name)
                    yield hashed(_frame(FIELD, len(name).to_bytes(4, "big") + name + blob))
        for member in members:
            yield hashed(_frame(MEMBER, member))
        yield _frame(END, digest.digest())

    async def import_thread(
        self, chunks: AsyncIterable[bytes], *, thread_id: str | None = None
    ) -> str:
        """Store an exported thread exactly, and return its id.

        Args:
            chunks: The exported bytes, cut anywhere.
            thread_id: Another id for it; None keeps the one that it had.

        Raises:
            CorruptCheckpointError: The file is cut, altered or no export. Or it is encrypted, gets
                another id, and no key opens it. Nothing is kept.
            ThreadTakenError: The thread has checkpoints already.
        """
        frames = _FrameReader(chunks, self.options.max_checkpoint_bytes)
        await frames.magic()
        kind, body = await frames.next()
        if kind != THREAD:
            raise CorruptCheckpointError(EXPORTED, "it does not begin with an id")
        former_id = keys.decode(body)
        thread_id = former_id if thread_id is None else thread_id
        # Fields without an index are left from a killed import of an early release.
        if await self._store.call("EXISTS", self._store.thread(thread_id).index):
            raise ThreadTakenError(thread_id)
        arrival = Arrival(self._store, thread_id, self.options.ttl_s)
        try:
            while (frame := await frames.next())[0] != END:
                kind, body = frame
                if kind == FIELD:
                    size = int.from_bytes(body[:4], "big")
                    name, blob = body[4 : 4 + size], body[4 + size :]
                    if name == keys.HEAD:
                        check_head(blob, thread_id)
                    moved = self._moved(name, blob, former_id, thread_id)
                    await arrival.add_field(name, moved)
                elif kind == MEMBER:
                    await arrival.add_member(body)
                else:
                    raise CorruptCheckpointError(EXPORTED, f"frame kind {kind!r}")
            if not arrival.num_members:
                raise CorruptCheckpointError(EXPORTED, "it has no checkpoint")
            await arrival.show()
        except BaseException:
            await arrival.drop()
            raise
        return thread_id

    def _moved(self, name: bytes, blob: bytes, source_id: str, target_id: str) -> bytes:
        if name[:1] not in keys.WRAPPED:
            return blob
        envelope = self._session.envelope
        return envelope.of(source_id).moved(blob, name, envelope.of(target_id))

    async def thread_ids(self) -> AsyncIterator[str]:
        """Yield the ids of all threads, the last written first.

        Entries come and go meanwhile, so a page begins at a time, not at a rank.
        """
        registry = keys.registry_keys(self._store.prefix).threads
        latest, offset, seen = b"+inf", 0, set[bytes]()
        while True:
            page = await self._store.call(
                "ZREVRANGEBYSCORE", registry, latest, b"-inf", "LIMIT", offset, PAGE
            )
            for member in page:
                if member not in seen:
                    seen.add(member)
                    yield keys.decode(member)
            if len(page) < PAGE:
                return
            score = await self._store.call("ZSCORE", registry, page[-1])
            earlier = latest if score is None else b"%d" % float(score)
            # More than a page of threads has the same time: go on within it.
            offset = offset + PAGE if earlier == latest else 0
            latest = earlier


class _FrameReader:
    """Takes frames out of chunks of any size, and checks the digest at the end."""

    def __init__(self, chunks: AsyncIterable[bytes], limit: int) -> None:
        self._chunks = aiter(chunks)
        self._limit = limit
        """Most bytes of a value."""
        self._buffer = bytearray()
        self._digest = hashlib.sha256()

    async def magic(self) -> None:
        found = await self._take(len(MAGIC))
        if found != MAGIC:
            raise CorruptCheckpointError(
                EXPORTED, f"it begins with {found!r} where {MAGIC!r} is expected"
            )
        self._digest.update(found)

    async def next(self) -> tuple[bytes, bytes]:
        """Return kind and content of the next frame."""
        head = await self._take(FRAME_HEAD)
        size = int.from_bytes(head[1:], "big")
        if size > self._limit + FRAME_MORE:
            raise TooLargeError(f"a field of {EXPORTED}", size, self._limit)
        body = await self._take(size)
        if head[:1] == END and body != self._digest.digest():
            raise CorruptCheckpointError(EXPORTED, "its digest differs")
        self._digest.update(head + body)
        return head[:1], body

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                self._buffer += await anext(self._chunks)
            except StopAsyncIteration:
                raise CorruptCheckpointError(
                    EXPORTED, f"it ends {size - len(self._buffer)} bytes too early"
                ) from None
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def _frame(kind: bytes, body: bytes) -> bytes:
    return kind + len(body).to_bytes(4, "big") + body


async def _members(store: Store, thread_id: str) -> list[bytes]:
    # Before the fields: all that an indexed checkpoint refers to was stored with it.
    thread = store.thread(thread_id)
    members = await store.members(thread.index)
    if not members:
        raise ThreadNotFoundError(thread_id)
    check_head(await store.call("HGET", thread.data, keys.HEAD), thread_id)
    return members


async def _fields(store: Store, thread_id: str) -> AsyncIterator[dict[bytes, bytes]]:
    data_key = store.thread(thread_id).data
    cursor: int | None = None
    while cursor != 0:
        position, batch = await store.call("HSCAN", data_key, cursor or 0, "COUNT", SCAN)
        cursor = int(position)
        if batch:
            yield batch


async def field_names(store: Store, thread_id: str) -> set[bytes]:
    """Read the names of all fields of a thread, a page at a time, without what they hold."""
    data_key = store.thread(thread_id).data
    names: set[bytes] = set()
    cursor: bytes | None = None
    while cursor != b"0":
        cursor, some = await store.script(FIELD_NAMES, [data_key], [cursor or b"0"])
        names.update(some)
    return names


async def _memory(store: Store, names: list[str]) -> int | None:
    try:
        sizes = await store.pipeline([("MEMORY USAGE", name, "SAMPLES", SAMPLES) for name in names])
    except StoreRefusedError:
        return None  # some managed servers forbid MEMORY
    return sum(size or 0 for size in sizes)


def _odd(thread_id: str, why: str) -> ThreadInfo:
    begin = _time(0)
    return ThreadInfo(str(thread_id), 0, None, begin, begin, None, None, trouble=why)


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
