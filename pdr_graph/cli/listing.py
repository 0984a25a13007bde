"""`pdr-graph threads`: the runs that a store keeps."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from langchain_core.language_models import FakeListChatModel
from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.text import Text

from checkpoints import CorruptCheckpointError, RedisSaver, ThreadInfo
from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output
from pdr_graph.cli.stores import MEMORY, open_saver
from pdr_graph.cli.tables import plain_table
from pdr_graph.cli.text import one_line
from pdr_graph.errors import ConfigError
from pdr_graph.graph import PDRGraph, build_graph
from pdr_graph.settings import Settings, load_settings

WIDE = 92
"""Columns of a terminal that has room for every column of the table."""


@dataclass(frozen=True, slots=True)
class Run:
    """One line of the list."""

    thread_id: str
    preset: str | None
    """None where the thread is not one of ours."""
    state: str
    """`finished`, `running`, `stopped`, `unreadable`, or `other` for a thread of another graph."""
    node: str | None
    """Where a run that is not finished is."""
    updated: str
    """Time of the last write, in UTC, as ISO 8601."""
    answer: str | None
    bytes: int | None
    """Memory that the server uses for it; None where it does not say."""
    created: str
    lease: str | None
    """Who runs it now (host:pid); None when nobody does."""


def threads_command(given: Given, limit: int, output: Output) -> None:
    """List the runs, the last written first."""
    settings = load_settings(**given)
    if settings.redis_url == MEMORY:
        raise ConfigError("memory keeps no runs; name a store by --checkpoint / PDR_REDIS_URL")
    runs = asyncio.run(_runs(settings, limit, output))
    if output.json:
        output.show_json([asdict(run) for run in runs])
    elif runs:
        output.show(RunTable(runs))
    else:
        output.say("no run is kept there yet")


async def _runs(settings: Settings, limit: int, output: Output) -> list[Run]:
    async with open_saver(settings, output.say) as saver:
        assert isinstance(saver, RedisSaver)  # `memory` was refused
        # Reading state needs the graph's shape, never its model.
        graph = build_graph(FakeListChatModel(responses=[""]), checkpointer=saver)
        return [await _run(graph, thread) for thread in await saver.threads(limit)]


async def _run(graph: PDRGraph, thread: ThreadInfo) -> Run:
    run = Run(
        thread_id=thread.thread_id,
        preset=None,
        state="other",
        node=None,
        updated=thread.updated.isoformat(timespec="seconds"),
        answer=None,
        bytes=thread.num_bytes,
        created=thread.created.isoformat(timespec="seconds"),
        lease=thread.holder,
    )
    try:
        snapshot = await graph.aget_state({"configurable": {"thread_id": thread.thread_id}})
    except CorruptCheckpointError:
        return replace(run, state="unreadable")
    config = snapshot.values.get("config")
    if not isinstance(config, dict):
        return run
    return replace(
        run,
        preset=str(config.get("preset")),
        state="finished" if not snapshot.next else "running" if thread.holder else "stopped",
        node=snapshot.next[0] if snapshot.next else None,
        answer=(snapshot.values.get("solution") or {}).get("answer"),
    )


class RunTable:
    """The runs, with the columns that their terminal has room for."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        titles = list(_CELLS) if wide else ["thread", "state", "answer"]
        table = plain_table(gap=2)
        for title in titles:
            table.add_column(title, no_wrap=True, overflow="ellipsis")
        for run in self._runs:
            shown = run if wide else replace(run, node=None)
            table.add_row(*(_CELLS[title](shown) for title in titles))
        yield table


def _state(run: Run) -> Text:
    style = {"finished": "green", "running": "cyan", "stopped": "yellow"}.get(run.state, "red")
    return Text(f"{run.state} at {run.node}" if run.node else run.state, style)


def _ago(moment: str) -> str:
    seconds = max(0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


_CELLS: Mapping[str, Callable[[Run], Text]] = {
    "thread": lambda run: Text(one_line(run.thread_id)),
    "preset": lambda run: Text(one_line(run.preset or "–")),
    "state": _state,
    "updated": lambda run: Text(_ago(run.updated), "dim"),
    "size": lambda run: Text("–" if run.bytes is None else decimal(run.bytes), "dim"),
    "age": lambda run: Text(_ago(run.created).removesuffix(" ago"), "dim"),
    "lease": lambda run: Text(one_line(run.lease or "–"), "dim"),
    "answer": lambda run: Text("–" if run.answer is None else one_line(run.answer)),
}
