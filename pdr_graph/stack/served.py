"""A server that is a command: run, waited for, ended with everything that it started."""

import asyncio
import ctypes
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pdr_graph.errors import LocalError
from pdr_graph.stack.plan import TITLES, Plan
from pdr_graph.stack.processes import Process

POLL_S = 0.2
PROBE_TIMEOUT_S = 5.0
GRACE_S = 20.0
"""For an orderly end: vLLM gives its memory back, Redis writes its files."""
SIGNAL_AT_PARENTS_DEATH = 1
"""PR_SET_PDEATHSIG of prctl(2)."""

_CAUSE = re.compile(r"\w*(?:Error|Exception): \S.*|# \S.*|error: \S.*")
_NOT_THE_CAUSE = "Engine core initialization failed"


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    url: str
    model: str
    watch: Callable[[], Awaitable[None]]
    """Returns at once while the server is well.

    Raises:
        LocalError: it has ended, or answers no more.
    """


Note = Callable[[Process], None]
"""Told of the process as soon as there is one."""


@asynccontextmanager
async def served(plan: Plan, log: Path, note: Note) -> AsyncIterator[Served]:
    """Run the command of a plan for as long as the context lasts; it answers when it is entered.

    Raises:
        LocalError: it cannot be run, or ended at its start.
    """
    title, (server, begin) = TITLES[plan.kind], _run(plan, log)
    process = Process.of(server.pid)

    async def watch() -> None:
        status = server.poll()
        if status is not None:
            raise LocalError(
                f"{title} ended with status {status} ({cause(log, begin)}); its log is {log}"
            )

    try:
        if process is not None:
            note(process)
        while not await asyncio.to_thread(answers, plan.url):
            await watch()
            await asyncio.sleep(POLL_S)
        yield Served(plan.url, plan.model, watch)
    finally:
        await asyncio.to_thread(_end, server, process, log.parent)


def _run(plan: Plan, log: Path) -> "tuple[subprocess.Popen[bytes], int]":
    """Return the process, and where in the log its words begin."""
    try:
        with log.open("ab") as out:
            begin = out.seek(0, os.SEEK_END)
            server = subprocess.Popen(
                plan.command,
                cwd=log.parent,
                env=_environment(plan.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # its whole group can be ended, and no Ctrl-C reaches it
                preexec_fn=_die_with_parent(os.getpid()),
            )
            return server, begin
    except OSError as error:
        raise LocalError(
            f"{TITLES[plan.kind]} cannot be run by {plan.command[0]}: {error.strerror}"
        ) from error


def answers(url: str) -> bool:
    """Tell whether a model endpoint or a Redis answers at its URL, in a few seconds at most."""
    try:
        return _is_healthy(url) if url.startswith("http") else _pongs(url)
    except (OSError, http.client.HTTPException):
        return False


def cause(log: Path, begin: int = 0) -> str:
    """Find the line of a log that says most likely why a server ended.

    Args:
        log: What it wrote.
        begin: Where its part of the file begins, in bytes.
    """
    lines = last_lines(log, 400, begin)
    found = [match[0] for line in lines if (match := _CAUSE.search(line))]
    # vLLM's engine dies of one error, and its server then of another that only says so.
    telling = [each for each in found if _NOT_THE_CAUSE not in each]
    return (telling or found or lines or ["it said nothing"])[-1].strip()[:300]


def last_lines(log: Path, number: int, begin: int = 0) -> list[str]:
    """Return the last lines of a log that are not empty."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(begin, size - 2**17))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip()][-number:]


def _end(server: "subprocess.Popen[bytes]", process: Process | None, home: Path) -> None:
    if process is not None:
        process.end_group(GRACE_S, home)
    if server.poll() is None:
        server.kill()
    server.wait()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return our environment without what `child.environment` put there for our own modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | dict(extra)


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """Return what a child does so that its keeper's death, by whatever signal, ends it too."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: in the child little is safe

    def ask() -> None:
        libc.prctl(SIGNAL_AT_PARENTS_DEATH, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return ask


def _is_healthy(url: str) -> bool:
    # Not an HTTP client of the usual kind: those would ask a configured proxy for 127.0.0.1.
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _pongs(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme == "unix":
        connection = socket.socket(socket.AF_UNIX)
        where: str | tuple[str, int] = unquote(parts.path)
    else:
        connection = socket.socket()
        where = (parts.hostname or "127.0.0.1", parts.port or 6379)
    with connection:
        connection.settimeout(PROBE_TIMEOUT_S)
        connection.connect(where)
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
