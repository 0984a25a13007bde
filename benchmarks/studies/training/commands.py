"""Commands of the product, each in a process of its own, and what they cost."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.files import append_lines

COSTS = "costs.jsonl"


@dataclass(frozen=True, slots=True)
class Shop:
    """Runs commands on one thread each, and keeps account."""

    folder: Path

    def run(self, words: Sequence[str], module: str = "pdr_graph.cli") -> None:
        """Run one command, its errors left to the terminal.

        Raises:
            SystemExit: it failed, or was stopped; with its exit code.
        """
        say(f"$ python -m {module} {shlex.join(words)}")
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        line = {
            "what": words[0] if module == "pdr_graph.cli" else "warm start",
            "cpu_s": round(used.ru_utime + used.ru_stime, 2),
            "wall_s": round(time.monotonic() - began, 2),
        }
        append_lines(self.folder / COSTS, f"{json.dumps(line)}\n".encode())
        if process.returncode:
            raise SystemExit(process.returncode)


def say(line: str) -> None:
    """Tell what is being done."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
