"""Processes that hold an embedded part, and a look at the servers that work for them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

SCRIPT = """
import asyncio, contextlib, json, sys
from pathlib import Path
from pdr_graph.servers import embedded_model, embedded_valkey

async def hold(part, data_dir):
    async with contextlib.AsyncExitStack() as stack:
        if part == "model":
            parts = embedded_model(Path(data_dir), slots=1, context_per_slot=256)
            where = (await stack.enter_async_context(parts)).base_url
        else:
            where = await stack.enter_async_context(embedded_valkey(Path(data_dir)))
        print(json.dumps(where), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(hold(*sys.argv[1:]))
"""


@dataclass
class Holder:
    """A process that holds the "model" or the "valkey" of a data directory until told or killed."""

    part: str
    data_dir: Path

    def __post_init__(self) -> None:
        command = [sys.executable, "-c", SCRIPT, self.part, str(self.data_dir)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def where(self) -> str:
        """Wait until it holds the part; return the part's address."""
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        """Let it leave in an orderly way."""
        self.process.communicate(timeout=60)

    def kill(self) -> None:
        """Kill it with SIGKILL, so that it cannot do anything about it."""
        self.process.kill()
        self.process.communicate()


def servers(
    data_dir: Path, wanted: Callable[[psutil.Process], bool] = lambda process: True
) -> list[psutil.Process]:
    """List the processes that work for a data directory, its holders not among them.

    Any of them may end meanwhile, also while `wanted` looks at it.
    """
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = any(str(data_dir) in word for word in [process.cwd(), *words])
            ours = ours and SCRIPT not in words and wanted(process)
        except psutil.Error:
            continue
        if ours:
            found.append(process)
    return found


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """Wait for a condition to come true."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
