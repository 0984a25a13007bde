"""A process by its number and its start, so that a number in use again is nobody we know.

How a module of this package is run as a process of its own.

What is to be started, settled before anything is.

A server that is a command: run, waited for, ended with everything that it started.
"""

import asyncio
import contextlib
import ctypes
import dataclasses
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import pdr_graph
from pdr_graph.errors import LocalError

POLL_S = 0.05
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this boot of this machine."""

    pid: int
    started: str
    """When, in words that are only compared; no two processes of one number share them."""

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """Look a running process up; None if there is none, or only its exit status is left."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return _started(self.pid) == self.started

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; False if it is gone, whoever has its number now."""
        try:
            if not hasattr(os, "pidfd_open"):  # macOS: the number might be reused in between
                if self.is_alive():
                    os.kill(self.pid, number)
                    return True
                return False
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def end_group(self, grace_s: float, home: Path | None = None) -> None:
        """End it and the process group that it leads, by force after `grace_s` seconds.

        Args:
            grace_s: Time for an orderly end.
            home: The directory in which it was started. Where it is gone already, those of its
                group that still work there are ended; None leaves them.
        """
        if self.signal(signal.SIGTERM):
            self.wait(grace_s)
            with contextlib.suppress(ProcessLookupError):
                # Its number cannot be given to another while anything of its group is left.
                if Process.of(self.pid) in {None, self}:
                    os.killpg(self.pid, signal.SIGKILL)
            self.wait(grace_s)
        elif home is not None and not self.is_alive():
            for member in _members(self.pid, home):
                member.signal(signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it still runs after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True


def _members(group: int, home: Path) -> list[Process]:
    """List the processes of a group that work in a directory; none where there is no /proc."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ours = int(fields[2]) == group and (folder / "cwd").readlink() == home
        except OSError:
            continue
        member = Process.of(int(folder.name)) if ours else None
        if member is not None:
            found.append(member)
    return found


def _started(pid: int) -> str | None:
    if (PROC / "self/stat").exists():
        return _started_in_proc(pid)
    done = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = done.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def _started_in_proc(pid: int) -> str | None:
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # "1234 (name, which may hold anything) S …": the state, and 19 fields later the start.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else f"{boot} {fields[19]}"


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `module` in this interpreter.

    `-P` keeps the current directory out of the child's imports: it is the user's, and may hold
    anything.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Return this process's environment, with the package where the child will find it.

    A package that is run from a source tree is on the parent's path only.
    """
    root = str(Path(pdr_graph.__file__).parents[1])
    paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


Part = Literal["model", "store"]
PARTS: tuple[Part, ...] = ("model", "store")

Kind = Literal["vllm", "embedded model", "redis", "embedded valkey"]

TITLES: Mapping[Kind, str] = {
    "vllm": "vLLM",
    "embedded model": "the embedded model",
    "redis": "Redis",
    "embedded valkey": "the embedded Valkey",
}


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server that is to run."""

    part: Part
    kind: Kind
    url: str = ""
    """Where it will answer; "" where only its start tells."""
    command: tuple[str, ...] = ()
    """What is run; empty for an embedded part."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the command has on top of ours; may hold a key."""
    model: str = ""
    """The name that the model is served under."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # Any: arguments of embedded parts
    """What an embedded part is opened with."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """Options that the user gave for it; another `up` with others is told of the difference."""
    timeout_s: float = 1800.0
    """For its start."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should read."""

    def to_json(self) -> str:
        """Return the plan as a keeper reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServerPlan":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        lists = {name: tuple(fields[name]) for name in ("command", "notes")}
        return cls(**{**fields, **lists})

    def shown(self) -> str:
        """Return what a shell would be told, without keys; a comment for an embedded part."""
        if not self.command:
            settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
            return f"# {TITLES[self.kind]}{settings and ': '}{settings}"
        variables = [
            f"{name}={'***' if name.endswith('KEY') else shlex.quote(value)}"
            for name, value in self.environment.items()
        ]
        return " ".join([*variables, shlex.join(self.command)])


SERVED_POLL_S = 0.2
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
async def served(plan: ServerPlan, log: Path, note: Note) -> AsyncIterator[Served]:
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
            await asyncio.sleep(SERVED_POLL_S)
        yield Served(plan.url, plan.model, watch)
    finally:
        await asyncio.to_thread(_end, server, process, log.parent)


def _run(plan: ServerPlan, log: Path) -> "tuple[subprocess.Popen[bytes], int]":
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
