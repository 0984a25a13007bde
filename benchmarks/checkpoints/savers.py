"""The savers, each opened as its documentation says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

SAVERS = {
    "ours": "redis",
    "sqlite": "langgraph-checkpoint-sqlite",
    "plainredis": "langgraph-checkpoint-plainredis",
    "aws": "langgraph-checkpoint-aws",
    "official": "langgraph-checkpoint-redis",
}
"""The package that each needs."""


def installed(name: str) -> str | None:
    """Give the version of what a saver needs; None where it is not installed."""
    try:
        return version(SAVERS[name])
    except PackageNotFoundError:
        return None


@asynccontextmanager
async def open_saver(name: str, url: str, folder: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """Open a saver with its library's defaults, but for a pool large enough not to fail."""
    # Imported one by one, since each is optional.
    if name == "ours":
        from pdr_checkpoints import open_checkpointer

        async with open_checkpointer(url) as ours:
            yield ours
    elif name == "sqlite":
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        async with AsyncSqliteSaver.from_conn_string(f"{folder}/checkpoints.db") as sqlite:
            yield sqlite
    elif name == "plainredis":
        from langgraph_checkpoint_plainredis import AsyncRedisSaver as PlainSaver
        from redis.asyncio import BlockingConnectionPool, Redis

        pool = BlockingConnectionPool.from_url(url, max_connections=32, timeout=None)
        async with Redis.from_pool(pool) as client:
            yield PlainSaver(client)
    elif name == "aws":
        from langgraph_checkpoint_aws import AsyncValkeySaver
        from valkey.asyncio import BlockingConnectionPool as ValkeyPool
        from valkey.asyncio import Valkey

        valkey_pool = ValkeyPool.from_url(
            url.replace("redis://", "valkey://"), max_connections=32, timeout=None
        )
        async with Valkey.from_pool(valkey_pool) as valkey_client:
            yield AsyncValkeySaver(valkey_client)
    else:
        from langgraph.checkpoint.redis.aio import AsyncRedisSaver
        from redis.asyncio import BlockingConnectionPool, Redis

        pool = BlockingConnectionPool.from_url(url, max_connections=32, timeout=None)
        async with Redis.from_pool(pool) as client:
            saver = AsyncRedisSaver(redis_client=client)
            await saver.asetup()
            yield saver
