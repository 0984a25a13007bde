"""Checks every request before the application sees it: key, host name, body size and type."""

import asyncio
import hmac
import re
from collections.abc import Sequence
from contextlib import suppress

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pdr_graph.serve.options import LOOPBACK
from pdr_graph.serve.refusal import RefusalError

BODY_TIMEOUT_S = 30.0
"""Seconds in which a request's body must arrive."""

MOST_VALUES = 65_536
"""Values that a body may hold: far above a long conversation's, and read in a moment."""

DISCARD_TIMEOUT_S = 2.0
"""Seconds for which the body of a refused request is read on."""


class Guard:
    """An ASGI middleware that refuses requests without the right key, host or body."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        max_body_bytes: int,
        local_only: bool,
        origins: Sequence[str] = (),
        exposed: Sequence[str] = (),
    ) -> None:
        """Guard an application.

        Args:
            app: The application.
            key: The bearer token that clients must send; None asks for none.
            max_body_bytes: Size of the largest body.
            local_only: Whether requests must name this machine as their host, so that a web page
                cannot reach a server without a key through a name of its own (DNS rebinding).
            origins: Origins whose pages may call the application (CORS), `*` for any; the browser
                refuses it to all others.
            exposed: Headers of replies that such a page may read.
        """
        self._app = app
        self._key = key.encode() if key is not None else None
        self._max_body_bytes = max_body_bytes
        self._local_only = local_only
        self._checked: ASGIApp = self._pass_on
        if origins:
            # Around the checks, so that a page can read why it was refused.
            self._checked = CORSMiddleware(
                self._pass_on,
                allow_origins=origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                # Cookies of any page's user must never count.
                allow_credentials="*" not in origins,
                # The operator has named who may call a server of this machine.
                allow_private_network=True,
                expose_headers=exposed,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "OPTIONS" and not self._names_this_machine(Request(scope)):
            # A preflight is answered without looking further.
            await self._pass_on(scope, receive, send)
        else:
            await self._checked(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, has_body = Request(scope, receive), scope["method"] not in {"GET", "HEAD"}
        try:
            self._check(request)
            body = await self._body(request) if has_body else b""
        except ClientDisconnect:
            return
        except RefusalError as refusal:
            if has_body:
                await _discard(Request(scope, receive), 8 * self._max_body_bytes)
            # The rest of the body would be taken for the next request.
            error = JSONResponse(
                refusal.body(), refusal.status, {**refusal.headers, "Connection": "close"}
            )
            await error(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, request: Request) -> None:
        headers = request.headers
        if not self._names_this_machine(request):
            raise RefusalError(
                403, "this server answers requests to localhost only; give it a key to serve others"
            )
        # A supervisor of the process need not have the key.
        if self._key is None or request.scope["path"] == "/health":
            return
        scheme, _, sent = headers.get("authorization", "").partition(" ")
        given = sent.strip().encode("utf-8", "surrogateescape")
        # In constant time, so that the time taken tells nothing about the key.
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._key):
            raise RefusalError(
                401, "no or wrong API key; send it as a bearer token", code="invalid_api_key"
            )

    def _names_this_machine(self, request: Request) -> bool:
        return not self._local_only or _host_of(request.headers.get("host", "")) in LOOPBACK

    async def _body(self, request: Request) -> bytes:
        headers = request.headers
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise self._too_large()
        # A web page may send anything but JSON to another site without that site's consent.
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and (length != "0" or "transfer-encoding" in headers):
            raise RefusalError(415, f"the body is {kind or 'of no type'}, not application/json")
        body, count = bytearray(), ValueCount()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.stream():
                    body += part
                    if len(body) > self._max_body_bytes:
                        raise self._too_large()
                    count.add(part)
        except TimeoutError:
            raise RefusalError(408, f"the body took longer than {BODY_TIMEOUT_S:g} s") from None
        return bytes(body)

    def _too_large(self) -> RefusalError:
        return RefusalError(
            413, f"the body is larger than {self._max_body_bytes} bytes, the limit of this server"
        )


class ValueCount:
    """Counts the values in JSON while it arrives, so that nothing is made of too many.

    It counts what begins or parts values outside of text: never fewer than there are, and one more
    for each list or object that is empty.
    """

    def __init__(self) -> None:
        self.values = 1
        self._in_text = False
        self._escape = b""
        """A backslash whose character is still to come."""

    def add(self, part: bytes) -> None:
        """Count the next bytes.

        Raises:
            RefusalError: 400, there are more than `MOST_VALUES`, or it is not UTF-8.
        """
        # In UTF-16 and UTF-32, quotes could not be told by their bytes.
        if b"\0" in part:
            raise RefusalError(400, "the body is not valid JSON in UTF-8", code="invalid_json")
        plain = _ESCAPED.sub(b"", self._escape + part)
        self._escape = b"\\" if plain.endswith(b"\\") else b""
        pieces = plain.split(b'"')
        outside = b"".join(pieces[self._in_text :: 2])
        self._in_text ^= len(pieces) % 2 == 0
        self.values += sum(map(outside.count, (b",", b"[", b"{")))
        if self.values > MOST_VALUES:
            raise RefusalError(
                400,
                f"the body holds more than {MOST_VALUES} values, the limit of this server",
                code="too_many_values",
            )


_ESCAPED = re.compile(rb"\\.", re.DOTALL)


async def _discard(request: Request, most: int) -> None:
    """Read the rest of a body: a client that is still writing would miss the answer."""
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_TIMEOUT_S):
            async for part in request.stream():
                most -= len(part)
                if most <= 0:
                    return


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that hands over a body that was already read."""
    pending = True

    async def again() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def _host_of(header: str) -> str:
    """Return the name in a Host header, without its port."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    return name.strip("[]").lower()
