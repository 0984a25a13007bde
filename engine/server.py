"""vLLM on the loopback interface, for as long as a test or a benchmark needs it.

It is started as `pdr-graph up` starts it (`pdr_graph.servers`); what differs is said below.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2

from engine.cache import cache_dir, say
from engine.environment import vllm_environment
from engine.metrics import Counters, counters, read_metrics
from engine.model_folder import smollm2_folder
from pdr_graph.errors import LocalError
from pdr_graph.servers.choice import free_port
from pdr_graph.servers.server import LOOK_S, CommandServer, not_up
from pdr_graph.servers.vllm import Serving, find_vllm, vllm_server

ON_CPU = ("--dtype", "float32")
"""Log-probabilities are compared to the last digits. It is also the fastest with AVX2, which has
no bfloat16."""
CALLS = 256
"""Most calls at once, unless `options` have `--max-num-seqs`."""
START_TIMEOUT_S = 600.0
TELL_EVERY_S = 20.0
# For `forget_prefixes`, and logs without colours.
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_COLOR": "0"}


@dataclass
class VLLMServer:
    """One server process and its address; `start` and `kill` may be called again and again."""

    python: Path
    """An interpreter that can import vLLM."""
    model: Path
    """A model folder."""
    log: Path
    name: str = "model"
    """Name under which the model is served."""
    options: Sequence[str] = ()
    """Further flags of vLLM's server; they win over ours."""
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    """Kept over a restart; 0 takes a free one at the first start."""
    started_in_s: float = 0.0
    _running: CommandServer | None = None

    @property
    def root(self) -> str:
        """The address without `/v1`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        """The OpenAI endpoint."""
        return f"{self.root}/v1"

    def start(self) -> Self:
        """Start the server and return when it is healthy.

        Raises:
            ConfigError: The interpreter has no vLLM.
            LocalError: The server ended, or is not healthy after `START_TIMEOUT_S`.
        """
        vllm = find_vllm(self.python, cache_dir())
        assert vllm is not None  # a named Python has it, or the call raises
        self.port = self.port or free_port(None)
        serving = Serving(
            str(self.model), self.port, None, CALLS, name=self.name, further=tuple(self.options)
        )
        plan = vllm_server(vllm, serving, START_TIMEOUT_S)
        environment = {**plan.environment, **ENVIRONMENT, **self.environment}
        self._running = CommandServer(replace(plan, environment=environment), self.log)
        began, told_s = time.monotonic(), 0.0
        try:
            self._running.start()
            while not self._running.is_ready():
                self.started_in_s = time.monotonic() - began
                if self.started_in_s > START_TIMEOUT_S:
                    raise not_up(plan, self.log)
                if self.started_in_s - told_s >= TELL_EVERY_S:
                    told_s = self.started_in_s
                    say(f"waiting for vLLM on {self.root}: {told_s:.0f} s")
                time.sleep(LOOK_S)
        except LocalError:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """End the server and all its processes at once, by SIGKILL."""
        if self._running is not None:
            self._running.end(grace_s=0)
            self._running = None

    def metrics(self) -> dict[str, float]:
        """Return the server's metrics as they are now."""
        return read_metrics(self.root)

    def counters(self) -> Counters:
        """Return the server's token counters as they are now."""
        return counters(self.metrics())

    def forget_prefixes(self) -> None:
        """Empty the prefix cache."""
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


@contextmanager
def smollm2_on_cpu(*options: str) -> Iterator[VLLMServer]:
    """Serve SmolLM2 in float32 by vLLM for CPUs, with further options, while the block lasts.

    Raises:
        LocalError: The server, its environment or the model cannot be had.
    """
    python = vllm_environment()
    with (
        tempfile.TemporaryDirectory() as folder,
        VLLMServer(
            python=python,
            model=smollm2_folder(python),
            log=Path(folder) / "vllm.log",
            name="smollm2",
            options=(*ON_CPU, *options),
            environment={"VLLM_CPU_KVCACHE_SPACE": "2"},
        ) as server,
    ):
        yield server
