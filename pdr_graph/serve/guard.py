"""Checks every request before the application sees it: key, host name, body size and type.

Each key has a space of its own for the names of threads. The first has the plain names, which runs
had before there was a second key, and which the command line uses.
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Sequence
from contextlib import suppress

from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pdr_graph.errors import keep_secret
from pdr_graph.serve.options import ServeOptions
from pdr_graph.serve.refusal import KeyFault, RefusalError, RefusalLog, noted
from pdr_graph.serve.request import SPACE, ThreadSpace

MOST_VALUES = 65_536
"""Values that a body may hold: far above a long conversation's, and read in a moment."""

DISCARD_TIMEOUT_S = 2.0
"""Seconds for which the body of a refused request is read on."""


def client_keys(options: ServeOptions) -> tuple[str, ...]:
    """Return the keys that clients may send; empty where none is asked for."""
    text = "" if options.key is None else options.key.get_secret_value()
    keys = tuple(dict.fromkeys(text.split()))
    keep_secret(*keys)
    return keys


class HostNames:
    """The names by which a server may be asked for, so that a web page cannot reach it by another.

    A page may give its own name the address of this machine (DNS rebinding). The browser then takes
    our replies for that page's own, and says its name in the Host header. It cannot do so with an
    address as the name.
    """

    def __init__(self, names: Sequence[str], *, addresses: bool) -> None:
        """Admit names.

        Args:
            names: Beside those of this machine; `*` is any.
            addresses: Whether every address is a name of the server; else those of this machine.
        """
        self._names = {"localhost", *(each.lower().rstrip(".") for each in names)}
        self._addresses = addresses

    def admit(self, headers: Sequence[str]) -> bool:
        """Tell whether the Host headers of a request name the server."""
        if "*" in self._names:
            return True
        if len(headers) != 1 or (found := _HOST.fullmatch(headers[0])) is None:
            return False
        name = (found["v6"] or found["name"]).lower()
        name = name if found["v6"] else name.removesuffix(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        if (address.version == 6) is not bool(found["v6"]):
            return False
        return self._addresses or address.is_loopback or str(address) in self._names


_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::\d{0,5})?")
"""A Host header, by RFC 9110: a name or an address, and perhaps a port."""


class Guard:
    """An ASGI middleware that refuses requests without the right key, host or body."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        max_body_bytes: int,
        body_s: float,
        hosts: HostNames | None,
        refusals: RefusalLog,
        origins: Sequence[str] = (),
        exposed: Sequence[str] = (),
    ) -> None:
        """Guard an application.

        Args:
            app: The application.
            keys: The bearer tokens of clients, who must send one of them; without any, none is
                asked for.
            max_body_bytes: Size of the largest body.
            body_s: Seconds in which a body must arrive.
            hosts: The names by which requests must ask for the server; None is any.
            refusals: Counts and logs every refusal, the application's included.
            origins: Origins whose pages may call the application (CORS), `*` for any; the browser
                refuses it to all others.
            exposed: Headers of replies that such a page may read.
        """
        self._app = app
        self._spaces = {
            key.encode(): ThreadSpace(key if index else "") for index, key in enumerate(keys)
        }
        self._max_body_bytes = max_body_bytes
        self._body_s = body_s
        self._hosts = hosts
        self._refusals = refusals
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
            return
        send = self._refusals.watch(scope, send)
        if scope["method"] == "OPTIONS" and not self._is_asked_for(Request(scope)):
            # A preflight is answered without looking further.
            await self._pass_on(scope, receive, send)
        else:
            await self._checked(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, has_body = Request(scope, receive), scope["method"] not in {"GET", "HEAD"}
        try:
            # The application is asked in the space of this key; nobody else can set it.
            scope = {**scope, SPACE: self._check(request)}
            body = await self._body(request) if has_body else b""
        except ClientDisconnect:
            return
        except RefusalError as refusal:
            if has_body:
                await discard(Request(scope, receive), 8 * self._max_body_bytes)
            noted(scope, refusal)
            # The rest of the body would be taken for the next request.
            error = JSONResponse(
                refusal.body(), refusal.status, {**refusal.headers, "Connection": "close"}
            )
            await error(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    def _check(self, request: Request) -> ThreadSpace:
        if not self._is_asked_for(request):
            host = ", ".join(request.headers.getlist("host"))[:100]
            raise RefusalError(
                403,
                f"host {host!r} is not known as a name of this server; ask for it as localhost, or "
                "start it with that name (--allowed-host) or with a key (--key-file)",
                code="host_not_allowed",
            )
        # A supervisor of the process need not have the key.
        if not self._spaces or request.scope["path"] == "/health":
            return ThreadSpace()
        header = request.headers.get("authorization", "")
        scheme, _, sent = header.partition(" ")
        given = sent.strip().encode("utf-8", "surrogateescape")
        # In constant time, so that the time taken tells nothing about the keys.
        found = [space for key, space in self._spaces.items() if hmac.compare_digest(given, key)]
        if scheme.lower() != "bearer" or not found:
            fault: KeyFault = "wrong" if scheme.lower() == "bearer" else "not_bearer"
            client = request.client.host if request.client is not None else ""
            self._refusals.failed_key(fault if header else "missing", client)
            raise RefusalError(
                401, "no or wrong API key; send it as a bearer token", code="invalid_api_key"
            )
        return found[0]

    def _is_asked_for(self, request: Request) -> bool:
        return self._hosts is None or self._hosts.admit(request.headers.getlist("host"))

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
            async with asyncio.timeout(self._body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > self._max_body_bytes:
                        raise self._too_large()
                    count.add(part)
        except TimeoutError:
            raise RefusalError(408, f"the body took longer than {self._body_s:g} s") from None
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


async def discard(request: Request, most: int = 2**20) -> None:
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
