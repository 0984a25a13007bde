"""The benchmark's hand on the endpoint: starts it in a process of its own, sets it, asks it."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

HOST = "localhost"
"""A name and not an address, so that each connection asks the resolver as in production."""


class BenchEndpoint:
    """Runs `server.py` for the length of a `with` block."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.orchestration.server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the endpoint ended with {self._process.wait()}")
        self.port = int(line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # which is what it waits for
        process.wait(timeout=10)
        process.stdout.close()

    @property
    def url(self) -> str:
        """Base URL, with its `/v1`."""
        return f"http://{HOST}:{self.port}/v1"

    def configure(self, **settings: object) -> None:
        """Replace the settings (`server.Settings`; what is not named has its default)."""
        ask(self.port, "/bench/settings", settings)

    def stats(self) -> dict[str, Any]:
        """Return what was served since the last `configure` (`server.Served`)."""
        return ask(self.port, "/bench/stats")


def ask(port: int, path: str, body: object = None) -> dict[str, Any]:
    """Send one control request."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body or {}))
        value: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return value
