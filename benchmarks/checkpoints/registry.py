"""What expired threads leave behind, and how long the server is held up by one command."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import redis
from langgraph.checkpoint.base import empty_checkpoint
from pdr_checkpoints import RedisSaver, keys, open_checkpointer

THREADS, QUICK_THREADS = 100_000, 1_000
"""Threads that expire."""
CHECKPOINTS, QUICK_CHECKPOINTS = 10_000, 300
"""Checkpoints of the long thread."""
AT_ONCE = 64
SWEPT_IN_S = 300.0
SLOW_US = 100
"""Commands that take longer are looked at."""


async def measure(url: str, *, quick: bool) -> dict[str, float]:
    """Let many threads expire, then work on a long one; entries, seconds, and ms of one command."""
    threads = QUICK_THREADS if quick else THREADS
    checkpoints = QUICK_CHECKPOINTS if quick else CHECKPOINTS
    with redis.Redis.from_url(url) as client:
        client.config_set("slowlog-log-slower-than", SLOW_US)
        client.config_set("slowlog-max-len", 10_000)
        async with open_checkpointer(url, ttl_s=3600) as saver:
            await _put_all(saver, [f"thread-{number}" for number in range(threads)])
        _expire(client)
        _longest_ms(client)
        start = time.perf_counter()
        async with open_checkpointer(url) as saver:
            await _put_all(saver, ["long"])
            left = await _until_swept(client)
            seconds = time.perf_counter() - start
            sweep_ms = _longest_ms(client)
            for _ in range(0, checkpoints, AT_ONCE):
                await _put_all(saver, ["long"] * AT_ONCE)
            put_ms = _longest_ms(client)
            long_ms = await _work_on(saver, client)
    return {
        "threads": threads,
        "left": left,
        "seconds": seconds,
        "sweep_ms": sweep_ms,
        "checkpoints": checkpoints,
        "put_ms": put_ms,
        "long_ms": long_ms,
    }


def table(found: Mapping[str, float]) -> str:
    """Return the row as a Markdown table."""
    head = (
        "| expired threads | entries left | seconds until then | longest command, sweeping | "
        "checkpoints of one thread | longest command, writing | reading, copying, pruning |"
    )
    row = (
        f"| {found['threads']:.0f} | {found['left']:.0f} | {found['seconds']:.1f} | "
        f"{found['sweep_ms']:.1f} ms | {found['checkpoints']:.0f} | {found['put_ms']:.1f} ms | "
        f"{found['long_ms']:.1f} ms |"
    )
    return f"{head}\n{'|---' * 7}|\n{row}"


async def _put_all(saver: RedisSaver, threads: list[str]) -> None:
    async def put(thread_id: str) -> None:
        checkpoint = empty_checkpoint()
        version = saver.get_next_version(None, None)
        checkpoint["channel_values"] = {"workspace": thread_id}
        checkpoint["channel_versions"] = versions = {"workspace": version}
        where: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        await saver.aput(where, checkpoint, {"step": 0}, versions)

    for first in range(0, len(threads), AT_ONCE):
        await asyncio.gather(*map(put, threads[first : first + AT_ONCE]))


def _expire(client: redis.Redis) -> None:
    """Let an hour pass for every thread."""
    registry = keys.registry_keys("checkpoint")
    pipe = client.pipeline(transaction=False)
    for number, member in enumerate(client.zscan_iter(registry.threads, count=1000)):
        thread = keys.thread_keys("checkpoint", keys.decode(member[0]))
        pipe.unlink(thread.data, thread.index)
        pipe.zadd(registry.expiries, {member[0]: 1})
        if number % 1000 == 999:
            pipe.execute()
    pipe.execute()


async def _until_swept(client: redis.Redis) -> int:
    """Wait until the registry holds the one thread that is left, and return what else it holds."""
    registry = keys.registry_keys("checkpoint")
    deadline = time.monotonic() + SWEPT_IN_S
    left = -1
    while left != 0 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        left = client.zcard(registry.threads) - 1 + client.zcard(registry.expiries)
    return left


async def _work_on(saver: RedisSaver, client: redis.Redis) -> float:
    """Do what reads or rewrites a whole thread, and return the longest command."""
    steps: list[Callable[[], Awaitable[Any]]] = [
        lambda: saver.threads(),
        lambda: anext(saver.alist({"configurable": {"thread_id": "long"}}, limit=1)),
        lambda: saver.acopy_thread("long", "copy"),
        lambda: saver.aprune(["copy"]),
        lambda: saver.adelete_thread("long"),
    ]
    for step in steps:
        await step()
    return _longest_ms(client)


def _longest_ms(client: redis.Redis) -> float:
    """Return the longest command since the last call, in ms, without those of this module."""
    slow = [each for each in client.slowlog_get(10_000) if b"SLOWLOG" not in each["command"]]
    client.slowlog_reset()
    return max((each["duration"] / 1000 for each in slow), default=0.0)
