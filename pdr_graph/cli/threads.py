"""`pdr-graph threads`: the runs that a store keeps.

`pdr-graph threads --prune | --delete | --export | --import`: what is kept, and where.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from langchain_core.language_models import FakeListChatModel
from pdr_checkpoints import CorruptCheckpointError, RedisSaver, ThreadInfo
from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.text import Text

from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output, one_line, plain_table
from pdr_graph.cli.store import MEMORY, alone, open_saver
from pdr_graph.errors import ConfigError, UnknownThreadError
from pdr_graph.graph import PDRGraph, build_graph
from pdr_graph.settings import Settings, load_settings

WIDE = 92
"""Columns of a terminal that has room for every column of the table."""


@dataclass(frozen=True, slots=True)
class ListedRun:
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


async def _runs(settings: Settings, limit: int, output: Output) -> list[ListedRun]:
    async with open_saver(settings, output.say) as saver:
        assert isinstance(saver, RedisSaver)  # `memory` was refused
        # Reading state needs the graph's shape, never its model.
        graph = build_graph(FakeListChatModel(responses=[""]), checkpointer=saver)
        return [await _run(graph, thread) for thread in await saver.threads(limit)]


async def _run(graph: PDRGraph, thread: ThreadInfo) -> ListedRun:
    run = ListedRun(
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

    def __init__(self, runs: list[ListedRun]) -> None:
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


def _state(run: ListedRun) -> Text:
    style = {"finished": "green", "running": "cyan", "stopped": "yellow"}.get(run.state, "red")
    return Text(f"{run.state} at {run.node}" if run.node else run.state, style)


def _ago(moment: str) -> str:
    seconds = max(0, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


_CELLS: Mapping[str, Callable[[ListedRun], Text]] = {
    "thread": lambda run: Text(one_line(run.thread_id)),
    "preset": lambda run: Text(one_line(run.preset or "–")),
    "state": _state,
    "updated": lambda run: Text(_ago(run.updated), "dim"),
    "size": lambda run: Text("–" if run.bytes is None else decimal(run.bytes), "dim"),
    "age": lambda run: Text(_ago(run.created).removesuffix(" ago"), "dim"),
    "lease": lambda run: Text(one_line(run.lease or "–"), "dim"),
    "answer": lambda run: Text("–" if run.answer is None else one_line(run.answer)),
}


CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Chore:
    """One thing to do with threads; exactly one of the first four is asked."""

    prune: bool = False
    delete: bool = False
    export_to: Path | None = None
    import_from: Path | None = None
    keep: int | None = None
    """Checkpoints of each thread that pruning keeps; None keeps what `inspect` shows."""

    @property
    def asked(self) -> bool:
        """Whether there is anything to do but list."""
        return self.prune or self.delete or bool(self.export_to) or bool(self.import_from)


def keeping_command(chore: Chore, threads: Sequence[str], given: Given, output: Output) -> None:
    """Do the chore.

    Raises:
        ConfigError: chores are mixed, or the threads do not fit the chore.
        UnknownThreadError: a thread is not there; nothing was done.
    """
    _check(chore, threads)
    settings = load_settings(**given)

    async def go() -> None:
        async with open_saver(settings, output.say) as saver:
            if not isinstance(saver, RedisSaver):
                raise ConfigError("memory keeps no runs; name a store by --checkpoint")
            if chore.import_from is not None:
                name = await saver.import_thread(
                    _chunks(chore.import_from), thread_id=threads[0] if threads else None
                )
                output.say(f"imported thread {one_line(name)} from {chore.import_from}")
                return
            for thread in threads:
                if await saver.thread(thread) is None:
                    raise UnknownThreadError(thread)
            if chore.export_to is not None:
                await _export(saver, threads[0], chore.export_to)
                output.say(f"exported thread {one_line(threads[0])} to {chore.export_to}")
                return
            await _prune_or_delete(saver, chore, threads, output)

    asyncio.run(go())


async def _prune_or_delete(
    saver: RedisSaver, chore: Chore, threads: Sequence[str], output: Output
) -> None:
    for thread in threads or [info.thread_id for info in await saver.threads()]:
        # Under its lease: a run that goes on keeps what it needs.
        async with alone(saver, thread, output.say):
            if chore.delete:
                await saver.adelete_thread(thread)
            elif chore.keep is None:
                await saver.aprune([thread], strategy="inspection")
            else:
                await saver.aprune([thread], strategy="keep_latest", keep=chore.keep)
        output.say(f"{'deleted' if chore.delete else 'pruned'} thread {one_line(thread)}")


def _check(chore: Chore, threads: Sequence[str]) -> None:
    options = {
        "--prune": chore.prune,
        "--delete": chore.delete,
        "--export": chore.export_to is not None,
        "--import": chore.import_from is not None,
    }
    asked = [name for name, wanted in options.items() if wanted]
    if not asked:
        raise ConfigError(
            "threads are named without a chore; add --prune, --delete or --export, or look at one "
            "by `pdr-graph inspect`"
        )
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} do different things; ask for one at a time")
    if chore.keep is not None and not chore.prune:
        raise ConfigError(f"--keep {chore.keep} says how much --prune leaves, not {asked[0]}")
    if chore.delete and not threads:
        raise ConfigError("--delete needs the names of threads; `pdr-graph threads` lists them")
    if chore.export_to is not None:
        if len(threads) != 1:
            raise ConfigError(f"--export writes one thread, {len(threads)} are named")
        if chore.export_to.exists():
            raise ConfigError(f"--export {str(chore.export_to)!r} exists; choose another file")
    if chore.import_from is not None:
        if len(threads) > 1:
            raise ConfigError(f"--import stores one thread, {len(threads)} names are given for it")
        if not chore.import_from.is_file():
            raise ConfigError(f"--import {str(chore.import_from)!r} is no file")


async def _export(saver: RedisSaver, thread: str, file: Path) -> None:
    """Write the whole file or none."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as out:
            async for chunk in saver.export_thread(thread):
                await asyncio.to_thread(out.write, chunk)
        part.replace(file)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield chunk
