"""One process that answers requests, a JSON object a line, for as long as it is let live."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pdr_graph.errors import PDRError

# Requests and replies of `worker.py`.
Message = dict[str, Any]

# Importing sympy takes 1 to 3 s, and many times that on a machine that is busy.
_START_TIMEOUT_S = 120.0


class Child:
    """One child process."""

    def __init__(self, script: Path, argument: str) -> None:
        # -P keeps the script's folder off the path: its neighbours are not top-level modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script), argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.num_requests = 0
        self._part = b""
        """Of a line that is not whole yet."""

    def wait_until_ready(self) -> None:
        """Wait for the line that says so.

        Raises:
            PDRError: It did not come.
        """
        if self.reply(_START_TIMEOUT_S) is None:
            raise PDRError(
                f"the answer checker's worker did not start within {_START_TIMEOUT_S:g} s: "
                f"try `{sys.executable} -c 'import math_verify'`"
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self._process.poll() is not None

    def ask(self, request: Message) -> None:
        """Send a request; a child that has ended leaves it without a reply."""
        self.num_requests += 1
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def reply(self, timeout_s: float) -> Message | None:
        """Return the next line; None if there was none in time, or the child ended."""
        assert self._process.stdout is not None
        poll, line = select.poll(), self._part
        poll.register(self._process.stdout, select.POLLIN)
        end = time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                self._part = line
                return None
            part = os.read(self._process.stdout.fileno(), 65_536)
            if not part:
                self.kill()  # who has closed its output has ended, or is about to
                return None
            line += part
        self._part = b""
        message: Message = json.loads(line)
        return message

    def kill(self) -> None:
        """End the process, whatever it is doing; its thread then finds the pipe at its end."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and let go of its pipes."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a request that was never read
                pipe.close()
