"""What the studies share: their tasks, their model, and the commands that they run."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pdr_graph.servers.data_dir import default_data_dir
from pdr_graph.servers.weights import QWEN, fetch_weights, find_weights

TASKS = {
    "chain_sum": "min_terms=3&max_terms=5&min_digits=1&max_digits=2",
    "basic_arithmetic": "min_terms=2&max_terms=4&min_digits=1&max_digits=1",
}
"""Procedural tasks that a model of half a billion parameters can partly solve; their settings."""


def task_sources(problems: int, seed: int) -> dict[str, str]:
    """Return the tasks by name, as `pdr-graph eval` takes them."""
    return {
        name: f"reasoning-gym:{name}?size={problems}&seed={seed}&{settings}"
        for name, settings in TASKS.items()
    }


def compare_words(runs: Sequence[Path], into: Path, pairs: Sequence[str]) -> list[str]:
    """Return the arguments of `pdr-graph` that compare the arms of one run, or of several.

    Args:
        runs: Their folders.
        into: Folder for the table and the plots.
        pairs: `reference:arm`; empty compares every arm with the first.
    """
    words = [
        *("compare", *map(str, runs), "--markdown", str(into / "table.md")),
        *("--plots", str(into / "plots")),
    ]
    return [*words, *(word for pair in pairs for word in ("--pair", pair))]


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the model, and how many calls are made at once."""
    add = parser.add_argument
    add("--base-url", help="endpoint; without one the embedded server runs the model")
    add("--model", help="a .gguf file, or the endpoint's name (Qwen2.5-Coder-0.5B, fetched)")
    add("--vllm", action="store_true", help="run the model on vLLM for CPUs, built on first use")
    add("--max-in-flight", type=int, default=32, help="calls at once (%(default)s)")


def endpoint_words(asked: argparse.Namespace) -> list[str]:
    """Return the options of `add_endpoint` as arguments of `pdr-graph eval`."""
    model = asked.model or ("" if asked.base_url else str(weights_file()))
    return [
        *("--max-in-flight", str(asked.max_in_flight)),
        *(("--base-url", asked.base_url) if asked.base_url else ()),
        *(("--model", model) if model else ()),
    ]


def weights_file() -> Path:
    """Return the weights of the studies' model, downloaded on first use.

    Raises:
        LocalError: they cannot be downloaded.
    """
    folder = default_data_dir()
    return find_weights(folder, weights=QWEN) or fetch_weights(folder, say, weights=QWEN)


def run(words: Sequence[str]) -> None:
    """Show a command of `pdr-graph` and run it; its output goes to the terminal.

    Raises:
        SystemExit: it failed or was stopped; with its exit code.
    """
    say(f"$ pdr-graph {shlex.join(words)}")
    process = subprocess.Popen([sys.executable, "-m", "pdr_graph.cli", *words])
    while process.poll() is None:
        # Ctrl-C reaches the command too, which then stops so that it can be resumed.
        with suppress(KeyboardInterrupt):
            process.wait()
    if process.returncode:
        raise SystemExit(process.returncode)


def say(line: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
