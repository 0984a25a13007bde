"""Measures the CPU time in which each command starts.

    python -m benchmarks.startup [--runs N] [--only NAMES] [--source FOLDER] [--json FILE]

`help`, `threads` and `doctor` run to their end; `threads` once on an empty store and once on one
that keeps a run. `solve` and `eval` run until their first request reaches an endpoint, which is
where they are killed. The table shows user and system time, the median of several runs, and its
ratio to a Python that does nothing: the ratio says how fast a machine of another speed is.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil

from benchmarks.figures import Figures, tell
from engine.machine import describe_machine
from pdr_graph.errors import PDRError
from pdr_graph.servers import embedded_valkey

BARE = "python"
"""The row that the others are compared with."""
WAIT_S = 120.0
"""Seconds in which a command must have ended, or asked for something."""
COMMAND = (sys.executable, "-m", "pdr_graph.cli")
PROBLEM = {"problem": "What is 6 x 7?", "answer": "42"}
KEEP_A_RUN = """
import asyncio, sys
from langchain_core.language_models import FakeListChatModel
from pdr_checkpoints import open_checkpointer
from pdr_graph import preset, solve

async def main():
    model = FakeListChatModel(responses=[r"\\boxed{42}"])
    async with open_checkpointer(sys.argv[1]) as saver:
        await solve("What is 6 x 7?", preset("long_cot"), model=model, checkpointer=saver)

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Start:
    """One command whose start is measured."""

    name: str
    words: tuple[str, ...]
    limit_s: float | None = None
    """CPU seconds that it should stay below on a common machine; None sets no limit."""
    asks: bool = False
    """Whether it is measured until its first request, and not to its end."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Folders and environment of the measured commands."""

    folder: Path
    empty: Path
    """Data directory of a store that keeps nothing."""
    kept: Path
    """Data directory of a store that keeps a run."""
    environment: Mapping[str, str]

    def starts(self, base_url: str) -> Iterator[Start]:
        """Yield what is measured, given an endpoint that answers nothing."""
        data, out = self.folder / "problems.jsonl", self.folder / "evaluation"
        data.write_text(json.dumps(PROBLEM) + "\n")
        remote = ("--base-url", base_url, "--data-dir", str(self.empty))
        yield Start(BARE, (sys.executable, "-c", "pass"))
        yield Start("import", (sys.executable, "-c", "from pdr_graph import solve"))
        yield Start("help", (*COMMAND, "--help"), 0.5)
        yield Start("solve-help", (*COMMAND, "solve", "--help"), 0.5)
        yield Start("threads", (*COMMAND, "threads", "--data-dir", str(self.empty)), 0.5)
        yield Start("threads-1", (*COMMAND, "threads", "--data-dir", str(self.kept)), 0.5)
        yield Start("doctor", (*COMMAND, "doctor", "--data-dir", str(self.empty)), 0.5)
        yield Start("solve", (*COMMAND, "solve", PROBLEM["problem"], *remote), 1.2, asks=True)
        words = ("eval", str(data), "--arm", "long_cot", "--out", str(out), *remote)
        yield Start("eval", (*COMMAND, *words), asks=True)


def main() -> int:
    """Print the table, and write the figures where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="starts of each command")
    parser.add_argument("--only", help="rows to measure, by their names, with commas")
    parser.add_argument("--source", type=Path, help="another checkout whose commands are measured")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    asked = parser.parse_args()
    only = frozenset(asked.only.split(",")) if asked.only else None
    return tell(lambda: asyncio.run(measure(asked.runs, only, asked.source)), table, asked.json)


async def measure(
    runs: int, only: frozenset[str] | None = None, source: Path | None = None
) -> Figures:
    """Start each command some times.

    Args:
        runs: Starts of each.
        only: Names of the rows; None is all.
        source: The checkout that is measured; None is the package that this process imports.

    Raises:
        PDRError: a command fails, or asks for nothing.
    """
    with tempfile.TemporaryDirectory() as name, _silent_endpoint() as (base_url, arrivals):
        folder = Path(name)
        empty, kept = folder / "empty", folder / "kept"
        bench = Bench(folder, empty, kept, _environment(source))
        starts = list(bench.starts(base_url))
        unknown = (only or frozenset()) - {start.name for start in starts}
        if unknown or runs < 1:
            raise PDRError(f"there is no row {', '.join(sorted(unknown))}" if unknown else "0 runs")
        chosen = [each for each in starts if only is None or each.name in {BARE, *only}]
        async with embedded_valkey(empty), embedded_valkey(kept) as url:
            if any(each.name == "threads-1" for each in chosen):
                await asyncio.to_thread(_keep_a_run, bench, url)
            rows = await asyncio.to_thread(_rows, bench, chosen, runs, arrivals)
    return {"command": "make bench-startup", "machine": describe_machine(), "rows": rows}


def table(figures: Figures) -> str:
    """Lay the rows out."""
    rows = cast("list[dict[str, Any]]", figures["rows"])  # Any: as `_rows` made them
    lines = [f"{'start':<12}{'CPU s':>8}{'ratio':>8}{'below':>8}"]
    for row in rows:
        limit = "" if row["limit_s"] is None else f"{row['limit_s']:.1f}"
        lines.append(f"{row['start']:<12}{row['cpu_s']:>8.3f}{row['ratio']:>8.1f}{limit:>8}")
    return "\n".join(lines)


def _rows(
    bench: Bench, starts: Sequence[Start], runs: int, arrivals: Callable[[float], bool]
) -> list[dict[str, object]]:
    # Round by round, so that a busy minute of the machine does not fall on one command alone.
    seconds: dict[str, list[float]] = {start.name: [] for start in starts}
    for _ in range(runs):
        for start in starts:
            seconds[start.name].append(_cpu_s(bench, start, arrivals))
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    return [
        {
            "start": start.name,
            "cpu_s": middle[start.name],
            "ratio": middle[start.name] / middle[BARE],
            "limit_s": start.limit_s,
            "runs": seconds[start.name],
        }
        for start in starts
    ]


def _cpu_s(bench: Bench, start: Start, arrivals: Callable[[float], bool]) -> float:
    """Return the CPU seconds of one start.

    Raises:
        PDRError: it fails, or asks for nothing.
    """
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            start.words, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            env=bench.environment, cwd=bench.folder,
        )  # fmt: skip
        if start.asks:
            arrived = arrivals(WAIT_S)
            times = psutil.Process(process.pid).cpu_times() if arrived else None
            process.kill()
            process.wait()
            if times is not None:
                return times.user + times.system
        else:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            # The doctor exits with 1 where it finds something amiss.
            if process.returncode == 0 or start.name == "doctor":
                return used.ru_utime + used.ru_stime
        said.seek(0)
        raise PDRError(f"{start.name} did not start: {said.read().decode(errors='replace')}")


def _keep_a_run(bench: Bench, url: str) -> None:
    words = [sys.executable, "-c", KEEP_A_RUN, url]
    subprocess.run(words, env=bench.environment, cwd=bench.folder, check=True)


def _environment(source: Path | None) -> dict[str, str]:
    """Return this process's environment, without settings of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PDR_")}
    if source is not None:
        folder = source.absolute()
        kept["PYTHONPATH"] = os.pathsep.join(map(str, (folder, folder / "checkpoints")))
    return kept


@contextmanager
def _silent_endpoint() -> Iterator[tuple[str, Callable[[float], bool]]]:
    """Listen without answering; yields the base URL, and what waits for a request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def arrived(timeout_s: float) -> bool:
            listener.settimeout(timeout_s)
            try:
                with listener.accept()[0] as connection:
                    connection.settimeout(timeout_s)
                    return bool(connection.recv(1))
            except TimeoutError:
                return False

        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", arrived


if __name__ == "__main__":
    sys.exit(main())
