"""A vLLM server on the loopback interface, for as long as a test or a benchmark needs it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from engine.cache import say
from engine.metrics import Counters, counters, read_metrics
from pdr_graph.errors import LocalError

GUARD = Path(__file__).with_name("guard.py")

ON_CPU = ("--dtype", "float32", "--enforce-eager", "--no-enable-chunked-prefill")
"""float32 because AVX2 has no bfloat16 (emulated, it is eight times slower); eager because
compiling takes longer than these runs do; whole prompts because a seeded request whose prompt is
read in chunks ends vLLM 0.31 on CPUs ("CPU Generator does not use offset")."""
START_TIMEOUT_S = 600.0
TELL_EVERY_S = 20.0
TAKEN = "address already in use"
_ERROR = re.compile(r"\b\w*Error: .+")


@dataclass
class VLLMServer:
    """One server process and its address; `start` and `kill` may be called again and again."""

    python: Path
    """An interpreter that can import vLLM."""
    model: Path
    """A model folder."""
    log: Path
    name: str = "model"
    """What the model is called at the endpoint."""
    options: Sequence[str] = ()
    """Further flags of vLLM's server."""
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    """Kept over a restart, as an address would be; 0 takes a free one at the first start."""
    started_in_s: float = 0.0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        """The address without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The OpenAI endpoint."""
        return f"{self.root}/v1"

    def start(self) -> Self:
        """Start the server and return once it is healthy.

        Raises:
            LocalError: it ended, or is not healthy after `START_TIMEOUT_S`; the log says why.
        """
        chosen = self.port != 0
        for attempt in range(3):
            self.port = self.port if chosen else _free_port()
            self._launch()
            try:
                self._wait()
            except LocalError:
                # Between finding the port and listening, another process may take it.
                if chosen or attempt == 2 or TAKEN not in self.log.read_text().lower():
                    raise
                continue
            return self
        return self

    def kill(self) -> None:
        """End the server and all its processes at once, by SIGKILL."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def metrics(self) -> dict[str, float]:
        """Return the server's metrics as they are now."""
        return read_metrics(self.root)

    def counters(self) -> Counters:
        """Return the server's token counters as they are now."""
        return counters(self.metrics())

    def forget_prefixes(self) -> None:
        """Empty the prefix cache; needs `VLLM_SERVER_DEV_MODE=1`, which `start` sets."""
        httpx2.post(f"{self.root}/reset_prefix_cache", timeout=30.0).raise_for_status()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _launch(self) -> None:
        command = [
            *(str(self.python), "-P", "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self.model), "--served-model-name", self.name),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
            *self.options,
        ]
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_LOGGING_COLOR": "0",
        }
        guard = [sys.executable, "-P", str(GUARD), str(os.getpid())]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*guard, *command],
                env={**os.environ, **quiet, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self) -> None:
        assert self._process is not None
        began = told = time.monotonic()
        while (now := time.monotonic()) - began < START_TIMEOUT_S:
            if self._process.poll() is not None:
                self.kill()
                raise LocalError(f"vLLM ended while it started: {_why(self.log)} (log: {self.log})")
            if now - told >= TELL_EVERY_S:
                told = now
                say(f"waiting for vLLM on {self.root}: {now - began:.0f} s")
            try:
                if httpx2.get(f"{self.root}/health", timeout=5.0).is_success:
                    self.started_in_s = time.monotonic() - began
                    return
            except httpx2.HTTPError:
                pass
            time.sleep(0.5)
        self.kill()
        raise LocalError(f"vLLM is not up after {START_TIMEOUT_S:.0f} s (log: {self.log})")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _why(log: Path) -> str:
    """Return the first error that a log names, else its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [found[0] for line in lines if (found := _ERROR.search(line)) and "WARN" not in line]
    return (errors or lines[-1:] or ["it said nothing"])[0][:300]
