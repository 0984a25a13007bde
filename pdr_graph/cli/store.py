"""Where runs are kept: in memory, in Redis by its URL, or in the embedded Valkey."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from pdr_checkpoints import RedisSaver, open_checkpointer
from pdr_checkpoints.connect import redact
from pdr_checkpoints.serde import MAX_CHECKPOINT_BYTES
from redis.exceptions import RedisError

from pdr_graph.errors import CheckpointError
from pdr_graph.servers import embedded_valkey
from pdr_graph.settings import Settings

Saver = BaseCheckpointSaver[str]
MEMORY = "memory"
LEASE_S = 10.0
"""Seconds after which the run of a killed process may be taken over."""


@asynccontextmanager
async def open_saver(
    settings: Settings, say: Callable[[str], None], *, ttl_s: float | None = None
) -> AsyncIterator[Saver]:
    """Open the store of the settings.

    Args:
        settings: Where it is.
        say: Receives a line on what is started.
        ttl_s: Seconds that a thread is kept after its last write; None keeps it until deleted.

    Raises:
        CheckpointError: the store refuses to work, with its address.
    """
    if settings.redis_url == MEMORY:
        yield InMemorySaver()
    elif settings.redis_url is not None:
        async with open_redis(settings.redis_url, ttl_s, max_bytes=settings.max_bytes) as saver:
            yield saver
    else:
        async with (
            embedded_valkey(settings.data_dir, announce=say) as url,
            open_redis(url, ttl_s, max_bytes=settings.max_bytes) as saver,
        ):
            yield saver


@asynccontextmanager
async def open_redis(
    url: str, ttl_s: float | None = None, *, max_bytes: int = MAX_CHECKPOINT_BYTES
) -> AsyncIterator[RedisSaver]:
    """Open a saver on a server; an error names its address.

    Args:
        url: Where it is.
        ttl_s: Seconds that a thread is kept after its last write; None keeps it until deleted.
        max_bytes: Memory that what is read of a checkpoint may take.

    Raises:
        CheckpointError: the server refuses a command.
    """
    try:
        async with open_checkpointer(url, ttl_s=ttl_s, max_checkpoint_bytes=max_bytes) as saver:
            yield saver
    except RedisError as error:
        raise CheckpointError(
            f"Redis at {redact(url)} refuses to work: {error}; `pdr-graph doctor` says more"
        ) from error


@asynccontextmanager
async def alone(saver: Saver, thread_id: str, say: Callable[[str], None]) -> AsyncIterator[None]:
    """Keep other processes from running the same thread at the same time.

    Raises:
        ThreadBusyError: another process runs it, and lives.
    """
    if not isinstance(saver, RedisSaver):
        yield
        return
    wait_s = 0.0
    known = await saver.thread(thread_id)
    if known is not None and known.holder is not None and not _lives_here(known.holder):
        # Its process may have been killed, and its lease then runs out in a moment.
        wait_s = LEASE_S + 1
        say(f"thread {thread_id!r} was run by {known.holder}; waiting up to {wait_s:.0f} s for it")
    async with saver.lease(thread_id, ttl_s=LEASE_S, wait_s=wait_s):
        yield


def _lives_here(holder: str) -> bool:
    host, _, pid = holder.rpartition(":")
    return host == socket.gethostname() and pid.isdigit() and psutil.pid_exists(int(pid))
