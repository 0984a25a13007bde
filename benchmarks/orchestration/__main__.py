"""Measures, and shows: `python -m benchmarks.orchestration [--only a,c] [--quick]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

import benchmarks.orchestration as package
from benchmarks.orchestration.bench import opened
from benchmarks.orchestration.cases import CASES
from benchmarks.orchestration.files import allow_many_files
from benchmarks.orchestration.plots import draw
from benchmarks.orchestration.report import circumstances, markdown, print_tables

PEER_PACKAGES = ("optillm", "its_hub")


async def measure(letters: list[str], *, quick: bool, peers_python: Path | None) -> dict[str, Any]:
    """Measure cases one after another; what they found, by letter."""
    console = Console(stderr=True)
    results: dict[str, Any] = {}
    async with opened(
        quick=quick, peers_python=peers_python, say=lambda text: console.print(f"  {text}")
    ) as bench:
        for letter in letters:
            console.print(f"[bold]{CASES[letter].title}[/bold]")
            began = time.perf_counter()
            results[letter] = CASES[letter].measure(bench)
            console.print(f"  {time.perf_counter() - began:.0f} s")
    return results


def peer_versions(python: Path | None) -> dict[str, str]:
    """Ask the peers' environment for their versions."""
    if python is None:
        return {}
    code = "from importlib.metadata import version; import sys; print(*map(version, sys.argv[1:]))"
    done = subprocess.run(
        [python, "-c", code, *PEER_PACKAGES], capture_output=True, text=True, check=True
    )
    return dict(zip(PEER_PACKAGES, done.stdout.split(), strict=True))


def letters_of(text: str) -> list[str]:
    """Read `a,c`."""
    letters = [letter.strip() for letter in text.split(",") if letter.strip()]
    for letter in letters:
        if letter not in CASES:
            raise argparse.ArgumentTypeError(f"no case {letter!r}; cases: {', '.join(CASES)}")
    return letters


def main() -> None:
    """Measure what was asked for, write it down and show it."""
    parser = argparse.ArgumentParser(
        prog="make bench", description=(package.__doc__ or "").splitlines()[0]
    )
    cases = "; ".join(f"{letter}: {case.title[4:]}" for letter, case in CASES.items())
    parser.add_argument("--only", type=letters_of, default=list(CASES), help=f"cases ({cases})")
    parser.add_argument("--quick", action="store_true", help="measure little, to see that it works")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the files")
    parser.add_argument("--plots", type=Path, help="folder for the PNGs; default: OUT")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the peers' environment")
    parser.add_argument("--redraw", action="store_true", help="measure nothing, show the last file")
    options = parser.parse_args()
    file = options.out / "orchestration.json"
    if options.redraw:
        if not file.is_file():
            parser.error(f"{file} does not exist; measure first")
        data = json.loads(file.read_text("utf-8"))
    else:
        allow_many_files()
        data = {"about": circumstances(peer_versions(options.peers_python))}
        data["results"] = asyncio.run(
            measure(options.only, quick=options.quick, peers_python=options.peers_python)
        )
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(data, indent=1), "utf-8")
    tables = [CASES[letter].show(each) for letter, each in data["results"].items()]
    print_tables(tables, Console())
    text = markdown(tables, data["about"])
    file.with_suffix(".md").write_text(text, "utf-8")
    drawn = draw(data["results"], options.plots or options.out)
    written = [file, file.with_suffix(".md"), *drawn]
    sys.stderr.write(f"written: {', '.join(map(str, written))}\n")


if __name__ == "__main__":
    main()
