"""Opens a saver from a URL; also what `langgraph.json` names as the checkpointer."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from langgraph.checkpoint.serde.base import SerializerProtocol

from checkpoints.options import Options
from checkpoints.saver import RedisSaver

URL_VARIABLE: Final = "REDIS_URL"
DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"


@asynccontextmanager
async def open_checkpointer(
    url: str | None = None,
    *,
    serde: SerializerProtocol | None = None,
    **options: Any,  # Any: the fields of Options, which checks them
) -> AsyncIterator[RedisSaver]:
    """Open a saver for as long as the block runs.

    Args:
        url: Where Redis or Valkey is, see `checkpoints.connect`. None takes the environment's
            REDIS_URL, or this machine.
        serde: How values become bytes; None is LangGraph's own.
        **options: Fields of `Options`.

    Raises:
        StoreConfigError: The URL or an option cannot work.
        StoreUnreachableError: No server answers.
    """
    # The one place of the package that reads the environment: langgraph.json cannot pass a URL.
    address = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    async with RedisSaver(address, serde=serde, options=Options(**options)) as saver:
        yield saver
