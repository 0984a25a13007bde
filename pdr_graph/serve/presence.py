"""Work that is done only as long as somebody waits for it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from pdr_graph.serve.refusal import RefusalError

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed the connection; there is nobody to tell."""


async def while_present(receive: Receive, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return the result of `work`, which is cancelled as soon as the client leaves.

    A cancelled run closes the connections of its calls, so that the model's server stops too.

    Args:
        receive: ASGI's, of a request whose body has been read.
        work: What the client waits for.
        timeout_s: Seconds that it may take.

    Raises:
        ClientGoneError: the client left first.
        RefusalError: the time was up first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise RefusalError(
            504, f"no answer within {timeout_s:g} s, the limit of this server", code="timeout"
        )
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
