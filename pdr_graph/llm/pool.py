"""HTTP connections for many long calls, per process and event loop.

A thought may take minutes in which the server sends nothing. So there is a limit on connecting and
none on reading; keep-alive probes find a peer that is gone. Connections are kept, since a new one
costs a handshake. Their number is unbounded: calls in flight are limited where the model is called.

httpcore's pool looks at all its connections when a request begins and again when it ends, so that
a call costs more the more others are in flight (1.9 ms alone, 7 ms beside a thousand). So each
connection is a pool of its own, and only the free ones are kept in a list here.

A server closes an idle connection, vLLM and llama.cpp after 5 s, perhaps just as the next request
is on its way. Ours are given up before that. If a kept connection still ends at once, it is
replaced and the request is sent again, since nobody has worked on it.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import httpx2

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value per event loop, made on first use and forgotten with the loop.

    Connections and semaphores belong to the loop that made them. With this, one object of a whole
    process serves `asyncio.run` twice, or two threads.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self) -> T:
        """Return the running loop's value."""
        loop = asyncio.get_running_loop()
        value = self._values.get(loop)
        if value is None:
            value = self._values[loop] = self._make()
        return value

    def pop(self) -> T | None:
        """Forget the running loop's value and return it, None if there was none."""
        return self._values.pop(asyncio.get_running_loop(), None)


TIMEOUT = httpx2.Timeout(None, connect=10.0)
"""Seconds: 10 to connect, none for a reply."""

_MOST_IDLE = 1024
"""Free connections kept for each server."""
_IDLE_S = 4.0
"""Seconds that a free connection is kept; less than the servers keep theirs."""
_AT_ONCE_S = 0.25
"""Seconds within which a kept connection ends if it was closed before the request came."""
_ONE_CONNECTION = httpx2.Limits(
    max_connections=1, max_keepalive_connections=1, keepalive_expiry=_IDLE_S
)

_Origin = tuple[str, str, int | None]
"""Scheme, host and port."""
_Free = deque[tuple[httpx2.AsyncHTTPTransport, float]]
"""Free connections to one server, each with the time at which it became free."""


class LoopTransport(httpx2.AsyncBaseTransport):
    """Sends each request on a free connection of the running event loop."""

    def __init__(self) -> None:
        self._lanes = PerLoop(_Lanes)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        return await self._lanes.get().send(request)

    async def aclose(self) -> None:
        """Close the running loop's connections; a later request opens new ones."""
        lanes = self._lanes.pop()
        if lanes is not None:
            await lanes.close()


class _Lanes:
    """The connections of one event loop; the free ones by server."""

    def __init__(self) -> None:
        self._all: set[httpx2.AsyncHTTPTransport] = set()
        self._free: dict[_Origin, _Free] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._closed = False

    async def send(self, request: httpx2.Request) -> httpx2.Response:
        """Send on the connection that was used last, so that the others age out."""
        url = request.url
        free = self._free.setdefault((url.scheme, url.host, url.port), deque())
        kept = bool(free)
        lane = free.pop()[0] if kept else self._open(url.scheme)
        try:
            response = await _send_on(lane, request, kept=kept)
        except BaseException:
            self._release(lane, free)
            raise
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _LentStream(response.stream, lambda: self._release(lane, free))
        await self._trim(free)
        return response

    async def close(self) -> None:
        """Close all connections, those in use included."""
        self._closed = True
        self._free.clear()
        while self._all:
            await self._all.pop().aclose()

    def _open(self, scheme: str) -> httpx2.AsyncHTTPTransport:
        context = self._contexts.get(scheme)
        if context is None:
            # Reading the machine's certificates takes 20 ms, and plain HTTP needs none.
            context = (
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                if scheme == "http"
                else httpx2.create_ssl_context()
            )
            self._contexts[scheme] = context
        lane = httpx2.AsyncHTTPTransport(
            verify=context, limits=_ONE_CONNECTION, socket_options=_keep_alive()
        )
        self._all.add(lane)
        return lane

    def _release(self, lane: httpx2.AsyncHTTPTransport, free: _Free) -> None:
        if not self._closed:
            free.append((lane, monotonic()))

    async def _trim(self, free: _Free) -> None:
        """Close connections that were free for too long, or are too many."""
        while free and (len(free) > _MOST_IDLE or monotonic() - free[0][1] > _IDLE_S):
            lane = free.popleft()[0]
            self._all.discard(lane)
            await lane.aclose()


async def _send_on(
    lane: httpx2.AsyncHTTPTransport, request: httpx2.Request, *, kept: bool
) -> httpx2.Response:
    began = monotonic()
    try:
        return await lane.handle_async_request(request)
    except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
        if not kept or monotonic() - began > _AT_ONCE_S:
            raise
    # The lane has lost its connection and opens another.
    return await lane.handle_async_request(request)


class _LentStream(httpx2.AsyncByteStream):
    """A reply's body, which gives its connection back once it is closed."""

    def __init__(self, stream: httpx2.AsyncByteStream, give_back: Callable[[], None]) -> None:
        self._stream = stream
        self._give_back: Callable[[], None] | None = give_back

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            # A body may be closed twice; its connection must be given back once.
            give_back, self._give_back = self._give_back, None
            if give_back is not None:
                give_back()


def make_http_client() -> httpx2.AsyncClient:
    """Return a client with connections of its own."""
    return httpx2.AsyncClient(transport=LoopTransport(), timeout=TIMEOUT)


def _keep_alive() -> list[tuple[int, int, int]]:
    # After 60 s of silence probe every 15 s; 8 lost probes end the connection.
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
        if hasattr(socket, name):  # macOS lacks TCP_KEEPIDLE
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
