"""Serves the application on a socket, and stops it so that runs can be resumed.

uvicorn closes only connections that wait for a further request. It keeps those on which nothing
arrives, or half a request, and those whose client reads nothing. So each connection here has a
deadline for what it waits for. The number of connections is bounded, in all and by address. At the
bound, the connection that has sent no whole request for the longest time is closed. Some
connections are kept free of work for `/health`, and to say that the server is full.
"""

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import json
import logging
import math
import resource
import signal
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import h11
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from pdr_graph.errors import ConfigError, counted
from pdr_graph.serve.guard import discard
from pdr_graph.serve.options import ServeOptions
from pdr_graph.serve.refusal import RETRY_SOON_S, Closed, RefusalError, RefusalLog
from pdr_graph.serve.runner import SolveRunner

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAREWELL_S = 1.0
"""Seconds that remain to tell clients that their runs were stopped."""

_MOST_FILES = 65_536
_BACKLOG = 2048
"""Clients that the system lets wait for us to accept them."""
_MOST_SPARE = 16
"""Connections that are kept free of work, at most."""


def listen(host: str, port: int) -> socket.socket:
    """Take the address; called before anything expensive is started.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is not an address of this
            machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise ConfigError(_why_not(host, port, error)) from None
    # asyncio does this only for sockets that name their protocol; accepted ones inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the address that clients use, with its `/v1`."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class SolveServer:
    """One server: the first signal drains it, the second stops it at once."""

    def __init__(
        self,
        app: ASGIApp,
        runner: SolveRunner,
        *,
        drain_s: float,
        say: Callable[[str], None],
        options: ServeOptions | None = None,
    ) -> None:
        """Make a server that does not listen yet.

        Args:
            app: What answers.
            runner: The runs behind it.
            drain_s: Seconds that calls in flight are waited for at the end.
            say: Receives sentences for the operator.
            options: Limits on connections; None is the defaults, whatever the environment says.

        Raises:
            ConfigError: more connections are asked for than this process may have files.
        """
        self._runner = runner
        self._say = say
        self._drain_s = drain_s
        options = options or ServeOptions.model_construct()
        files = _allow_many_files()
        connections = OpenConnections.within(files, options, runner.metrics.refusals)
        config = uvicorn.Config(
            app,
            http=partial(ClientConnection, connections),  # type: ignore[arg-type]  # makes one
            # So many are accepted before the first of them is seen.
            backlog=max(1, min(128, files // 8)),
            log_config=None,
            log_level="error",  # what clients send wrong must not fill the log
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=math.ceil(options.idle_s),
            # Runs are stopped before that; it ends clients that send or read too slowly.
            timeout_graceful_shutdown=math.ceil(drain_s + FAREWELL_S),
        )
        self._server = _Server(config, connections)

    async def run(self, listener: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until a signal comes and the last request is answered.

        Args:
            listener: Where clients connect; early ones wait in its queue.
            ready: Called once signals are handled.
        """
        loop = asyncio.get_running_loop()
        for each in SIGNALS:
            loop.add_signal_handler(each, self.stop)
        try:
            ready()
            await self._server.serve(sockets=[listener])
        finally:
            for each in SIGNALS:
                loop.remove_signal_handler(each)
        self._runner.cancel()
        await self._runner.ended()

    def stop(self) -> None:
        """Take no more requests, and stop runs at their next step; the second time at once."""
        loop = asyncio.get_running_loop()
        if self._server.should_exit:
            self._runner.cancel()
            loop.call_later(FAREWELL_S, self._leave)
            return
        self._server.should_exit = True
        running = self._runner.admission.running
        self._runner.drain()
        loop.call_later(self._drain_s, self._runner.cancel)
        if running:
            self._say(
                f"stopping: waiting up to {self._drain_s:g} s for the calls of "
                f"{counted(running, 'run')}; a second signal stops at once"
            )

    def _leave(self) -> None:
        self._server.force_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which know nothing of runs."""

    def __init__(self, config: uvicorn.Config, connections: "OpenConnections") -> None:
        super().__init__(config)
        self._connections = connections

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(_BACKLOG)  # asyncio has made it as short as what it accepts at once

    async def on_tick(self, counter: int) -> bool:
        if counter % 5 == 0:  # twice a second
            self._connections.close_overdue(asyncio.get_running_loop().time())
        return await super().on_tick(counter)


# ---------------------------------------------------------------------------- connections

Awaited = Literal["head", "body", "answer", "next"]
"""What a connection waits for; `next` is a further request."""


@dataclass(slots=True)
class OpenConnections:
    """All connections of a server: how many there may be, and how long each may wait."""

    most: int
    most_by_address: int
    stall_s: float
    """Seconds without any byte read by the client."""
    seconds: dict[Awaited, float]
    """How long each thing is waited for."""
    refusals: RefusalLog | None = None
    """Counts and logs what is refused here; None keeps no account."""
    _all: dict["ClientConnection", None] = field(default_factory=dict)
    _vacant: dict["ClientConnection", None] = field(default_factory=dict)
    """Those that have not sent a whole request, the one that has waited longest first."""
    _open: Counter[str] = field(default_factory=Counter)
    """By address."""
    _answered: Counter[str] = field(default_factory=Counter)
    """By address, those that are not vacant."""

    @classmethod
    def within(
        cls, files: int, options: ServeOptions, refusals: RefusalLog | None = None
    ) -> "OpenConnections":
        """Bound the connections of a process that may have so many open files.

        Raises:
            ConfigError: more are asked for.
        """
        most = options.connections or max(1, files // 2)
        if most > files - files // 8:
            raise ConfigError(
                f"--connections {most} needs as many open files, and this process may have "
                f"{files}; lower it, or raise the limit by `ulimit -n`"
            )
        # A request has its own limits; this is for what they do not see.
        whole_s = options.timeout_s + options.body_s + options.stall_s
        return cls(
            most=most,
            most_by_address=options.max_by_address or max(1, most * 3 // 4),
            stall_s=options.stall_s,
            seconds={
                "head": options.head_s,
                "body": whole_s,
                "answer": whole_s,
                "next": options.idle_s,
            },
            refusals=refusals,
        )

    def add(self, connection: "ClientConnection") -> bool:
        """Add a new connection, if need be in place of another; False if there is no place."""
        goes, address = None, connection.address
        if self._open[address] >= self.most_by_address:
            goes = next((each for each in self._vacant if each.address == address), None)
        elif len(self._all) >= self.most:
            goes = next(iter(self._vacant), None)
        if goes is not None:
            goes.end("displaced")
        if self._open[address] >= self.most_by_address or len(self._all) >= self.most:
            self.tell_closed("full", connection)
            return False
        self._all[connection] = self._vacant[connection] = None
        self._open[address] += 1
        return True

    def remove(self, connection: "ClientConnection") -> None:
        """Forget a connection; the second time nothing happens."""
        if connection in self._all:
            self._settle(connection, vacant=True)
            del self._all[connection], self._vacant[connection]
            self._open[connection.address] -= 1
            self._open += Counter()  # without those that are zero

    def note(self, connection: "ClientConnection") -> None:
        """Note that a connection has begun to wait for something else."""
        if connection in self._all:
            self._settle(connection, vacant=connection.awaits != "answer")

    def is_full(self, address: str) -> bool:
        """Tell whether no further request of an address may be answered."""
        at_work = len(self._all) - len(self._vacant)
        return at_work > self.most - _spare(self.most) or self._answered[
            address
        ] > self.most_by_address - _spare(self.most_by_address)

    def _settle(self, connection: "ClientConnection", *, vacant: bool) -> None:
        was_vacant = connection in self._vacant
        self._vacant.pop(connection, None)
        if vacant:
            self._vacant[connection] = None  # as the last
        self._answered[connection.address] += was_vacant - vacant

    def close_overdue(self, now: float) -> None:
        """Close the connections that have waited too long."""
        for each in list(self._all):
            if each.is_stalled(now, self.stall_s):
                self.tell_closed("stalled", each)
                each.abort()
            elif now - each.since > self.seconds["answer" if each.unsent else each.awaits]:
                each.end("overdue" if each.unsent or each.awaits != "head" else "silent")

    def tell_closed(self, why: Closed, connection: "ClientConnection") -> None:
        """Note that a connection is closed without an answer."""
        if self.refusals is not None:
            self.refusals.closed(why, connection.address)

    def tell_refused(self, refusal: RefusalError, connection: "ClientConnection") -> None:
        """Note a refusal that no application has seen."""
        if self.refusals is not None:
            self.refusals.refused_head(refusal, connection.address)


class ClientConnection(H11Protocol):
    """A connection that is closed when its client keeps it waiting."""

    def __init__(
        self,
        connections: OpenConnections,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],  # Any: as uvicorn has it
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections
        self.address = ""
        """Names the client for the bounds: an IPv4 address or an IPv6 network."""
        self.awaits: Awaited = "head"
        self.since = self.loop.time()
        """Time since which it waits for `awaited`."""
        self._moved = self.since
        """When the client was last seen to read."""
        self.unsent = 0
        """Bytes that the system had yet to take when we last looked."""
        self._read = 0
        """Bytes that the client had read by then."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin, if there is a place."""
        self._sent = _CountedTransport(transport)
        super().connection_made(cast("asyncio.Transport", self._sent))
        self.address = _network_of(self.client[0] if self.client else "")
        self.app = partial(self._answer, self.app)
        if not self._connections.add(self):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Make room."""
        self._connections.remove(self)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Read what has come, and note what is awaited now."""
        super().handle_events()
        self._note()

    def on_response_complete(self) -> None:
        """Wait for what comes next."""
        super().on_response_complete()
        self._note(anew=True)

    def is_stalled(self, now: float, stall_s: float) -> bool:
        """Tell whether the client has read nothing of what we send, for so many seconds."""
        self.unsent = self.transport.get_write_buffer_size()
        # The system accepts more bytes only after the client has read much of what it holds.
        held = _unread(self.transport.get_extra_info("socket")) if self.unsent else 0
        read = self._sent.bytes - self.unsent - held
        if not self.unsent or read > self._read:
            self._read, self._moved = read, now
        return now - self._moved > stall_s

    def end(self, why: Closed) -> None:
        """Close the connection; a client that has sent half a request learns why."""
        is_sending = self.transport.is_closing() or self.transport.get_write_buffer_size()
        if is_sending or self.awaits in {"body", "answer"}:
            self._connections.tell_closed(why, self)
            self.abort()
            return
        if self.awaits == "head" and self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            late = RefusalError(408, "the head of the request took too long", code="head_too_slow")
            self._connections.tell_refused(late, self)
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\n\r\n" + json.dumps(late.body()).encode()
            )
        elif self.awaits == "head" or why == "displaced":
            self._connections.tell_closed(why, self)  # a kept connection that was idle is no loss
        self.transport.close()
        self._connections.remove(self)

    def abort(self) -> None:
        """Close the connection, and send nothing of the rest."""
        if (end := self.transport.get_extra_info("socket")) is not None:
            # Without this, the system keeps on sending the rest to a client that reads nothing.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
        self._connections.remove(self)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._connections.tell_refused(RefusalError(400, msg, code="invalid_http"), self)
        super().send_400_response(msg)

    async def _answer(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; if the server is full, answer only `/health`."""
        if scope["path"] != "/health" and self._connections.is_full(self.address):
            full = RefusalError(
                503,
                "the server has as many connections as it may have; try again later",
                code="server_busy",
                retry_after_s=RETRY_SOON_S,
            )
            if (refusals := self._connections.refusals) is not None:
                refusals.note(full, scope)
            await discard(Request(scope, receive))
            headers = {**full.headers, "Connection": "close"}
            app = JSONResponse(full.body(), full.status, headers)
        await app(scope, receive, send)

    def _note(self, *, anew: bool = False) -> None:
        awaits: Awaited = "head"
        if self.cycle is not None and not self.cycle.response_complete:
            awaits = "body" if self.cycle.more_body else "answer"
        elif self.cycle is not None and self.conn.their_state is h11.IDLE:
            awaits = "head" if self.conn.trailing_data[0] else "next"
        if anew or awaits != self.awaits:
            self.awaits, self.since = awaits, self.loop.time()
            self._connections.note(self)


class _CountedTransport:
    """A transport that counts what it is given to send."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.bytes = 0

    def write(self, data: bytes) -> None:
        self.bytes += len(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:  # Any: all else is the transport's own
        return getattr(self._transport, name)


def _network_of(address: str) -> str:
    """Return the addresses that one client may own: an IPv6 network, or the address itself."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return (
        str(ipaddress.ip_network((found, 64), strict=False)) if not found.is_loopback else address
    )


def _unread(end: socket.socket) -> int:
    """Return how many bytes the system holds that the client has not acknowledged."""
    with contextlib.suppress(OSError):
        raw = fcntl.ioctl(end.fileno(), termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(raw, sys.byteorder)
    return 0


def _spare(most: int) -> int:
    """Return how many of so many connections do no work."""
    return min(_MOST_SPARE, most // 8)


# ---------------------------------------------------------------------------- the machine


def _why_not(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} on {host} is taken; choose another by --port, or 0 for any free one"
    if number == errno.EACCES:
        return f"port {port} is not allowed to this user; choose one above 1023 by --port"
    reason = getattr(error, "strerror", None) or str(error)
    return f"host {host!r} cannot be listened on: {reason}; --host names an address of this machine"


def _allow_many_files() -> int:
    """Raise the limit on open files, and return it: each client and each call needs one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return most if soft == resource.RLIM_INFINITY else soft
