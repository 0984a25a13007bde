"""A server that is a command: vLLM, Redis, Valkey. It is run, waited for, and ended."""

import http.client
import os
import re
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pdr_graph.errors import LocalError
from pdr_graph.process import Process, guarded
from pdr_graph.servers.data_dir import last_lines
from pdr_graph.servers.record import TITLES, ServerPlan

PROBE_TIMEOUT_S = 5.0
GRACE_S = 20.0
"""Seconds for an orderly end: vLLM gives its memory back, Redis writes its files."""
LOOK_S = 0.2
"""Seconds between two checks of whether a server answers."""

_CAUSE = re.compile(r"\w*(?:Error|Exception): \S.*|(?<=# )\S.*|error: \S.*")
_NOT_THE_CAUSE = "Engine core initialization failed"


class CommandServer:
    """The process of a plan's command; it ends with ours."""

    def __init__(self, plan: ServerPlan, log: Path) -> None:
        self.plan = plan
        self.log = log
        self.process: Process | None = None
        """Leads the group of the server; None before the start."""
        self._started: subprocess.Popen[bytes] | None = None
        self._log_size = 0
        """Bytes that the log held before the start."""

    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Run the command, which holds the descriptors `keep_open` as long as it lives.

        Raises:
            LocalError: The log cannot be written.
        """
        # `module_environment` sets PYTHONPATH for our own modules, and not for this command.
        ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        try:
            with self.log.open("ab") as out:
                self._log_size = out.tell()
                self._started = subprocess.Popen(
                    guarded(self.plan.command, GRACE_S),
                    cwd=self.log.parent,
                    env=ours | dict(self.plan.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    pass_fds=keep_open,
                    start_new_session=True,
                )
        except OSError as error:
            raise LocalError(
                f"{TITLES[self.plan.kind]} cannot be started with the log {self.log}: "
                f"{error.strerror or error}"
            ) from error
        self.process = Process.of(self._started.pid)

    def check(self) -> None:
        """Return at once while the process runs.

        Raises:
            LocalError: It has ended; the message has the reason from its log.
        """
        status = None if self._started is None else self._started.poll()
        if status is not None:
            said = cause(self.log, self._log_size)
            raise LocalError(
                f"{TITLES[self.plan.kind]} ended with status {status} ({said}); "
                f"its log is {str(self.log)!r}"
            )

    def is_ready(self) -> bool:
        """Tell whether it answers.

        Raises:
            LocalError: It has ended.
        """
        self.check()
        return answers(self.plan.url)

    def end(self, grace_s: float = GRACE_S) -> None:
        """End the server and whatever it has started; nothing happens the second time.

        It has `grace_s` seconds for an orderly end; 0 kills at once.
        """
        if self.process is not None:
            self.process.end_group(grace_s, self.log.parent.resolve())
        if self._started is not None:
            self._started.wait()


def not_up(plan: ServerPlan, log: Path) -> LocalError:
    """Return the error of a start that took too long."""
    return LocalError(
        f"{TITLES[plan.kind]} was not up after {plan.timeout_s:g} s; its log is {str(log)!r}"
    )


def answers(url: str) -> bool:
    """Tell whether a model endpoint or a Redis answers at its URL, in a few seconds at most."""
    try:
        return _is_healthy(url) if url.startswith("http") else _pongs(url)
    except (OSError, http.client.HTTPException):
        return False


def _is_healthy(url: str) -> bool:
    # An HTTP client of the usual kind would ask a configured proxy for 127.0.0.1.
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
        with connection.makefile("rb") as replies:
            if parts.password:
                word = unquote(parts.password).encode()
                connection.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(word), word))
                if not replies.readline(256).startswith(b"+OK"):
                    return False
            connection.sendall(b"PING\r\n")
            # A server that is still reading its files answers with an error.
            return replies.readline(256).startswith(b"+PONG")


def cause(log: Path, begin: int = 0) -> str:
    """Find the line of a log, from byte `begin` on, that most likely says why a server ended."""
    lines = last_lines(log, 400, begin)
    found = [match[0] for line in lines if (match := _CAUSE.search(line))]
    # vLLM's engine ends with an error. Its server then ends with another, which does not name the
    # cause.
    telling = [each for each in found if _NOT_THE_CAUSE not in each]
    return (telling or found or lines or ["it said nothing"])[-1].strip()[:300]
