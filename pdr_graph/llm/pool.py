"""One HTTP connection pool per process and event loop, made for many long calls.

A thought may take minutes during which the server sends nothing, so there is a limit on connecting
and none on reading; keep-alive probes find a peer that is gone. Connections are kept, since a new
one for each call costs a handshake, and their number is unbounded: calls in flight are limited
where the model is called.
"""

import socket

import httpx2

from pdr_graph.llm.per_loop import PerLoop

TIMEOUT = httpx2.Timeout(None, connect=10.0)
"""Seconds: 10 to connect, none for a reply."""

_LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=1024, keepalive_expiry=30)


class LoopTransport(httpx2.AsyncBaseTransport):
    """Hands each request to the connection pool of the event loop it is made in."""

    def __init__(self) -> None:
        self._pools = PerLoop(_make_pool)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        return await self._pools.get().handle_async_request(request)

    async def aclose(self) -> None:
        """Close the running loop's connections; a later request opens new ones."""
        pool = self._pools.pop()
        if pool is not None:
            await pool.aclose()


def make_http_client() -> httpx2.AsyncClient:
    """Return a client on a pool of its own."""
    return httpx2.AsyncClient(transport=LoopTransport(), timeout=TIMEOUT)


def _make_pool() -> httpx2.AsyncHTTPTransport:
    return httpx2.AsyncHTTPTransport(limits=_LIMITS, socket_options=_keep_alive())


def _keep_alive() -> list[tuple[int, int, int]]:
    # After 60 s of silence probe every 15 s; 8 lost probes end the connection.
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
        if hasattr(socket, name):  # macOS lacks TCP_KEEPIDLE
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
