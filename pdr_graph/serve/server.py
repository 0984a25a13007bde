"""Serves the application on a socket, and stops it so that runs can be resumed."""

import asyncio
import contextlib
import errno
import logging
import math
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from pdr_graph.errors import ConfigError
from pdr_graph.serve.runner import SolveRunner

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FAREWELL_S = 1.0
"""Seconds that remain to tell clients that their runs were stopped."""

_MOST_FILES = 65_536


def listen(host: str, port: int) -> socket.socket:
    """Take the address; called before anything expensive is started.

    Raises:
        ConfigError: the port is taken or not allowed, or the host is not an address of this
            machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
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
        self, app: ASGIApp, runner: SolveRunner, *, drain_s: float, say: Callable[[str], None]
    ) -> None:
        self._runner = runner
        self._say = say
        self._drain_s = drain_s
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=75,
            # Runs are stopped before that; it ends clients that send or read too slowly.
            timeout_graceful_shutdown=math.ceil(drain_s + FAREWELL_S),
        )
        self._server = _Server(config)

    async def run(self, listener: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until a signal comes and the last request is answered.

        Args:
            listener: Where clients connect; early ones wait in its queue.
            ready: Called once signals are handled.
        """
        _allow_many_files()
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
                f"stopping: waiting up to {self._drain_s:g} s for the calls of {running} "
                f"{'run' if running == 1 else 'runs'}; a second signal stops at once"
            )

    def _leave(self) -> None:
        self._server.force_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which know nothing of runs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _why_not(host: str, port: int, error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return f"port {port} on {host} is taken; choose another by --port, or 0 for any free one"
    if number == errno.EACCES:
        return f"port {port} is not allowed to this user; choose one above 1023 by --port"
    reason = getattr(error, "strerror", None) or str(error)
    return f"host {host!r} cannot be listened on: {reason}; --host names an address of this machine"


def _allow_many_files() -> None:
    """Raise the limit on open files: each client and each call needs one, and 1024 are usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
