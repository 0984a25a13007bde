"""Lists threads without scanning keys, from a registry that every checkpoint refreshes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from redis.exceptions import ResponseError

from pdr_checkpoints import keys
from pdr_checkpoints.keys import Keyspace
from pdr_checkpoints.lease import holder_of
from pdr_checkpoints.records import check_head
from pdr_checkpoints.store import Command, Store

PAGE: Final = 50
FORGET_AFTER_MS: Final = 10 * 60 * 1000
"""An entry whose thread expired is removed, unless it is so new that a write may be under way."""


@dataclass(frozen=True, slots=True)
class ThreadInfo:
    """One thread, as `pdr-graph threads` shows it."""

    thread_id: str
    num_checkpoints: int
    num_bytes: int | None
    """Memory that the server uses for it; None where the server does not say."""
    created: datetime
    updated: datetime
    holder: str | None
    """Who runs it now (host:pid); None when nobody does."""
    expires_in_s: float | None
    """Seconds until it expires if nothing is written; None when it is kept."""


async def thread_ids(store: Store, keyspace: Keyspace) -> AsyncIterator[str]:
    """Yield the ids of all threads, the last written first."""
    offset, seen = 0, set[bytes]()
    while members := await store.one("ZREVRANGE", keyspace.registry, offset, offset + PAGE - 1):
        offset += len(members)
        for member in members:
            # A thread that is written to meanwhile moves to the front, and others back a page.
            if member not in seen:
                seen.add(member)
                yield keys.decode(member)


async def list_threads(store: Store, keyspace: Keyspace, limit: int | None) -> list[ThreadInfo]:
    """Describe up to `limit` threads, the last written first."""
    found: list[ThreadInfo] = []
    gone: list[str] = []
    async for thread_id in thread_ids(store, keyspace):
        if limit is not None and len(found) >= limit:
            break
        info = await describe_thread(store, keyspace, thread_id)
        if info is None:
            gone.append(thread_id)
        else:
            found.append(info)
    # After the walk: removing entries during it would shift the pages.
    for thread_id in gone:
        await forget(store, keyspace, thread_id)
    return sorted(found, key=lambda info: info.updated, reverse=True)


async def describe_thread(store: Store, keyspace: Keyspace, thread_id: str) -> ThreadInfo | None:
    """Describe one thread; None when it has no checkpoints."""
    thread = keyspace.thread(thread_id)
    low, high = keys.below(keys.RECORD)
    (head, updated), count, held, ttl_ms = await store.read(
        [
            ("HMGET", thread.data, keys.HEAD, keys.UPDATED),
            ("ZLEXCOUNT", thread.index, low, high),
            ("GET", thread.lease),
            ("PTTL", thread.data),
        ]
    )
    if head is None or updated is None:
        return None
    created_ms = check_head(head, thread_id)
    return ThreadInfo(
        thread_id=thread_id,
        num_checkpoints=count,
        num_bytes=await _memory(store, [thread.data, thread.index]),
        created=_time(created_ms),
        updated=_time(int(updated.split()[0])),
        holder=None if held is None else holder_of(held),
        expires_in_s=None if ttl_ms < 0 else ttl_ms / 1000,
    )


async def forget(store: Store, keyspace: Keyspace, thread_id: str) -> None:
    """Remove an old entry of the registry whose thread is gone."""
    member = keys.encode(thread_id)
    score = await store.one("ZSCORE", keyspace.registry, member)
    if score is not None and time.time() * 1000 - float(score) > FORGET_AFTER_MS:
        await store.one("ZREM", keyspace.registry, member)


async def unlist(store: Store, keyspace: Keyspace, thread_id: str) -> None:
    """Remove the entry of a thread that is gone, unless it begins anew meanwhile."""
    member, now_ms = keys.encode(thread_id), time.time_ns() // 1_000_000
    await store.one("ZREM", keyspace.registry, member)
    if await store.one("EXISTS", keyspace.thread(thread_id).data):
        await store.one("ZADD", keyspace.registry, "NX", now_ms, member)


async def delete_thread(store: Store, keyspace: Keyspace, thread_id: str) -> None:
    """Remove a thread and all that belongs to it, but the lease of whoever runs it."""
    thread = keyspace.thread(thread_id)
    await store.one("UNLINK", thread.data, thread.index)
    await store.one("ZREM", keyspace.registry, keys.encode(thread_id))


async def _memory(store: Store, names: list[str]) -> int | None:
    commands: list[Command] = [("MEMORY USAGE", name, "SAMPLES", 0) for name in names]
    try:
        sizes = await store.read(commands)
    except ResponseError:
        return None  # some managed servers forbid MEMORY
    return sum(size or 0 for size in sizes)


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
