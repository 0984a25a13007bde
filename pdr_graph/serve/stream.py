"""Server-sent events, and work that ends when its client leaves.

The head of a stream is sent with its first event, so that a request that is refused at once has
the right status. Once the stream has begun, an error is sent as an event. Comments keep proxies
from taking a long thought for a dead connection.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from pdr_graph.serve.refusal import RefusalError

T = TypeVar("T")


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def while_present(receive: Receive, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """Return the result of `work`, which is cancelled as soon as the client leaves.

    A cancelled run closes the connections of its calls, so that the model's server stops too.

    Args:
        receive: ASGI's channel of a request whose body has been read.
        work: What the client waits for.
        timeout_s: Seconds that the work may take.

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


KEEP_ALIVE_S = 10.0
"""Longest silence on a connection, in seconds."""

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


@dataclass(slots=True)
class EventStream:
    """Sends events as they come; the ASGI application of one response."""

    events: AsyncGenerator[bytes]
    """What is sent."""
    failed: Callable[[BaseException], bytes]
    """Makes the last events of a stream that an error ends."""
    headers: dict[str, str]
    """Sent before the first event."""
    timeout_s: float
    """Seconds that the whole stream may take."""
    _begun: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole stream.

        Raises:
            ClientGoneError: the client left; the work has been cancelled.
            Exception: whatever went wrong before the first event.
        """
        try:
            await while_present(receive, self._write(send), self.timeout_s)
        except Exception as error:
            if not self._begun:
                raise
            await self._send(send, self.failed(error))
            await self._send(send, b"", more=False)

    async def _write(self, send: Send) -> None:
        following = asyncio.ensure_future(anext(self.events, None))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=KEEP_ALIVE_S)
                if done:
                    each = following.result()
                    if each is None:
                        break
                    await self._send(send, each)
                    following = asyncio.ensure_future(anext(self.events, None))
                else:
                    await self._send(send, b": waiting\n\n")
            await self._send(send, b"", more=False)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            # A generator that is left in the middle keeps its run going until it is collected.
            await self.events.aclose()

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        if not self._begun:
            self._begun = True
            head = Headers(_HEADERS | self.headers).raw
            await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": data, "more_body": more})
