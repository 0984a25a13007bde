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

A server is not trusted: it may send for ever. So `ReplyBounds` limit an unpacked reply, and a
connection whose reply exceeds them is closed.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import httpx2

from pdr_graph.llm.retry import BadReplyError

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
"""A kept connection that ends within so many seconds was closed before the request came."""
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
    return httpx2.AsyncClient(transport=BoundedTransport(LoopTransport()), timeout=TIMEOUT)


# ---------------------------------------------------------------------------- bounds


@dataclass(frozen=True, slots=True)
class ReplyBounds:
    """How much of one reply is read, and for how long."""

    max_bytes: int
    """Most bytes of the body, unpacked."""
    total_s: float
    """Most seconds from the request to the last byte."""
    idle_s: float = float("inf")
    """Longest time of a stream without a piece of the answer, in seconds."""
    max_pieces: int = 2**31
    """Pieces of a stream."""
    streamed: bool = False


_BOUNDS: ContextVar[ReplyBounds | None] = ContextVar("pdr_graph_reply_bounds", default=None)
_ERROR_BYTES = 2**16
"""Bytes that are read of a page that says why a request was refused."""
_ERROR_S = 10.0
"""Seconds for which such a page is read."""
_SLICE = 4096
"""Bytes of a stream that are handed on before other tasks get a turn."""


def current_bounds() -> ReplyBounds | None:
    """Return the bounds of the request that is being made, None if it has none."""
    return _BOUNDS.get()


@contextmanager
def bounded(bounds: ReplyBounds) -> Iterator[None]:
    """Read the reply to a request that is sent within this block by these bounds."""
    token = _BOUNDS.set(bounds)
    try:
        yield
    finally:
        _BOUNDS.reset(token)


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Sends requests by another transport, and reads replies by the bounds of `bounded`.

    Outside of such a block it does nothing.
    """

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        bounds = _BOUNDS.get()
        if bounds is None:
            return await self._inner.handle_async_request(request)
        deadline = monotonic() + bounds.total_s
        try:
            async with asyncio.timeout(bounds.total_s) as limit:
                reply = await self._inner.handle_async_request(request)
        except TimeoutError:
            if limit.expired():
                raise _too_slow(bounds) from None
            raise
        if not reply.is_error and _declared(reply) > bounds.max_bytes:
            await reply.aclose()
            raise _too_large(bounds)
        # The body leaves here unpacked.
        dropped = {"content-encoding", "content-length", "transfer-encoding"}
        return httpx2.Response(
            reply.status_code,
            headers=[
                each for each in reply.headers.multi_items() if each[0].lower() not in dropped
            ],
            stream=_BoundedStream(reply, bounds, deadline),
            extensions=reply.extensions,
        )

    async def aclose(self) -> None:
        """Close the other transport."""
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    """A reply's body, unpacked, up to its bounds."""

    def __init__(self, reply: httpx2.Response, bounds: ReplyBounds, deadline: float) -> None:
        self._reply, self._bounds, self._deadline = reply, bounds, deadline

    async def __aiter__(self) -> AsyncIterator[bytes]:
        bounds, left, deadline = self._bounds, self._bounds.max_bytes, self._deadline
        is_error = self._reply.is_error
        if is_error:
            left, deadline = _ERROR_BYTES, min(deadline, monotonic() + _ERROR_S)
        chunks = self._reply.aiter_bytes()
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - monotonic())) as limit:
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if is_error and limit.expired():
                    return  # an error page that was read in part will do
                if limit.expired():
                    raise _too_slow(bounds) from None
                raise
            left -= len(chunk)
            if left < 0 and is_error:
                yield chunk[:left]
                return
            if left < 0:
                raise _too_large(bounds)
            if not bounds.streamed:
                yield chunk
                continue
            for start in range(0, len(chunk), _SLICE):
                if start:
                    await asyncio.sleep(0)
                yield chunk[start : start + _SLICE]

    async def aclose(self) -> None:
        await self._reply.aclose()


def _declared(reply: httpx2.Response) -> int:
    length = reply.headers.get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < 30 else 0


def _too_large(bounds: ReplyBounds) -> BadReplyError:
    size = bounds.max_bytes
    most = f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"
    return BadReplyError(
        f"the endpoint's reply is larger than {most}, which is more than it can need; it was not "
        "read to its end"
    )


def _too_slow(bounds: ReplyBounds) -> BadReplyError:
    return BadReplyError(f"the endpoint's reply was not whole after {bounds.total_s:g} s")


@dataclass(frozen=True, slots=True)
class SmallReply:
    """The answer to a small request."""

    status: int
    content: bytes
    """The body, unpacked; of an error the beginning."""


SMALL_BYTES = 4 * 2**20
"""Most bytes of a reply that is not a model's: a list of models, a description of fields."""
SMALL_S = 10.0


async def ask_small(
    http: httpx2.AsyncClient,
    method: str,
    url: str,
    *,
    api_key: str,
    json: object = None,
    max_bytes: int = SMALL_BYTES,
    total_s: float = SMALL_S,
) -> SmallReply:
    """Make a request whose reply is small and comes soon, whatever the server sends.

    Raises:
        BadReplyError: the reply is larger than `max_bytes` or takes longer than `total_s` seconds.
        httpx2.HTTPError: the request failed.
    """
    bounds = ReplyBounds(max_bytes, total_s)
    request = http.build_request(
        method,
        url,
        json=json,
        headers={"Authorization": f"Bearer {api_key}"},
        timeout=httpx2.Timeout(total_s),
    )
    deadline, parts = monotonic() + total_s, []
    try:
        with bounded(bounds):
            async with asyncio.timeout(total_s) as limit:
                reply = await http.send(request, stream=True)
        try:
            # Bounded a second time, for HTTP clients that are not ours.
            async for chunk in _BoundedStream(reply, bounds, deadline):
                parts.append(chunk)
        finally:
            await reply.aclose()
    except TimeoutError:
        if limit.expired():
            raise _too_slow(bounds) from None
        raise
    return SmallReply(reply.status_code, b"".join(parts))


def _keep_alive() -> list[tuple[int, int, int]]:
    # After 60 s of silence probe every 15 s; 8 lost probes end the connection.
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
        if hasattr(socket, name):  # macOS lacks TCP_KEEPIDLE
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
