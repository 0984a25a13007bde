"""`pdr-graph threads`: list the runs that a store keeps, prune, delete, export or import them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer
from pdr_checkpoints import CorruptCheckpointError, RedisSaver, ThreadInfo
from rich.console import Console, ConsoleOptions, RenderResult
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pdr_graph.cli.commands import ThreadsCommand
from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.output import PIPE_WIDTH, Output, fitted, one_line, refuse_place, unbroken
from pdr_graph.cli.store import MEMORY, alone, named_thread, open_saver
from pdr_graph.errors import ConfigError, DamagedRunError, UnknownThreadError
from pdr_graph.files import written_whole
from pdr_graph.settings import load_settings

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from pdr_graph.graph import PDRGraph

UNREADABLE = "unreadable"
PROBLEM_CHARS = 80
"""Most characters of a problem that are listed."""


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One line of the list."""

    thread_id: str
    preset: str | None
    """None where the thread is not one of ours."""
    state: str
    """`finished`, `running`, `stopped`, `unreadable`, or `other` for a thread of another graph."""
    node: str | None
    """The next node of a run that is not finished."""
    updated: str
    """Time of the last write, in UTC, as ISO 8601."""
    answer: str | None
    bytes: int | None
    """Memory that the server uses for it; None where it does not say."""
    created: str
    lease: str | None
    """Who runs it now (host:pid); None when nobody does."""
    problem: str | None = None
    """How the problem begins, in at most 80 characters; None where it is not known."""
    reason: str | None = None
    """Why it is `unreadable`; None for any other."""


def threads_command(command: ThreadsCommand, output: Output) -> None:
    """List the runs, the latest first, or do what was asked with some of them.

    Raises:
        ConfigError: the options do not fit together.
        UnknownThreadError: a thread does not exist; nothing was done.
        typer.Exit: some runs cannot be read; all others were listed or pruned.
    """
    action = _action(command)
    settings = load_settings(**command.storage)
    if settings.redis_url == MEMORY:
        raise ConfigError("memory keeps no runs; name a store by --checkpoint / PDR_REDIS_URL")

    async def go() -> None:
        async with open_saver(settings, output.say, read_older=command.read_older) as saver:
            assert isinstance(saver, RedisSaver)  # `memory` was refused
            if action is None:
                _show(await _runs(saver, command.limit), output)
            else:
                await action(saver, command, output)

    asyncio.run(go())


def _show(runs: list[ListedRun], output: Output) -> None:
    if output.json:
        output.show_json([asdict(run) for run in runs])
    elif runs:
        output.show(RunTable(runs))
    else:
        output.say("no run is kept there yet")
    if odd := [run.thread_id for run in runs if run.reason is not None]:
        _tell_odd(odd, "cannot be read", output)


def _tell_odd(threads: Sequence[str], what: str, output: Output) -> NoReturn:
    """Say which threads are left out, and exit with the code of a part that failed.

    Raises:
        typer.Exit: always.
    """
    shown = ", ".join(one_line(thread) for thread in threads[:3])
    more = f" and {len(threads) - 3} more" if len(threads) > 3 else ""
    output.tell(
        f"{shown}{more} {what}; `pdr-graph inspect THREAD` says why, "
        "`pdr-graph threads THREAD --delete` removes it",
        "yellow",
    )
    raise typer.Exit(FAILED)


async def _runs(saver: RedisSaver, limit: int) -> list[ListedRun]:
    @cache
    def graph() -> "PDRGraph":
        # Late, and only for runs that go on: it takes a second to load.
        from langchain_core.language_models import FakeListChatModel

        from pdr_graph.graph import build_graph

        # Reading state needs the graph's shape, never its model.
        return build_graph(FakeListChatModel(responses=[""]), checkpointer=saver)

    return [await _listed(saver, graph, thread) for thread in await saver.threads(limit)]


async def _listed(
    saver: RedisSaver, graph: Callable[[], "PDRGraph"], thread: ThreadInfo
) -> ListedRun:
    """Describe a run, or say why it cannot be read, so that other runs are still listed."""
    from pdr_graph.state import reading, stored_config, stored_state, values_at_rest

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
    if thread.trouble is not None:
        return replace(run, state=UNREADABLE, reason=thread.trouble)
    place: RunnableConfig = {"configurable": {"thread_id": thread.thread_id}}
    node = None
    try:
        with reading(thread.thread_id):
            saved = await saver.aget_tuple(place)
            values = None if saved is None else values_at_rest(saved)
            if values is None:
                snapshot = await graph().aget_state(place)
                values, node = snapshot.values, next(iter(snapshot.next), None)
        if "config" not in values:
            return run
        state = stored_state(values, thread.thread_id)
        config = stored_config(state, thread.thread_id)
    except (CorruptCheckpointError, DamagedRunError) as error:
        return replace(run, state=UNREADABLE, reason=error.why)
    solution = state.get("solution")
    return replace(
        run,
        preset=config.label,
        state="finished" if node is None else "running" if thread.holder else "stopped",
        node=node,
        answer=None if solution is None else solution["answer"],
        problem=_first_words(state.get("problem", "")),
    )


def _first_words(problem: str) -> str:
    line = one_line(problem[: 4 * PROBLEM_CHARS])
    return line if len(line) <= PROBLEM_CHARS else f"{line[: PROBLEM_CHARS - 1]}…"


class RunTable:
    """The runs, fitted to the terminal: only the answer is cut.

    A pipe gets a whole line for each run. A narrow terminal gets two.
    """

    def __init__(self, runs: Sequence[ListedRun], now: datetime | None = None) -> None:
        self._runs = runs
        self._now = now or datetime.now(UTC)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            whole = self._table(list(CELLS), PIPE_WIDTH)
            assert whole is not None  # nothing is too wide for a pipe
            yield from console.render(whole, options.update(width=PIPE_WIDTH))
            return
        few = [title for title in CELLS if title not in WIDE_ONLY]
        wide = self._table(list(CELLS), options.max_width)
        table = wide or self._table(few, options.max_width)
        if table is not None:
            yield table
        else:
            yield from self._two_lines(options.max_width)

    def _cells(self, title: str) -> list[Text]:
        return [CELLS[title](run, self._now) for run in self._runs]

    def _table(self, titles: Sequence[str], width: int) -> Table | None:
        columns = [self._cells(title) for title in titles]
        if width != PIPE_WIDTH:
            for cell in columns[titles.index("problem")]:
                cell.truncate(PROBLEM_CELLS, overflow="ellipsis")
        rows = list(zip(*columns, strict=True))
        return fitted(titles, rows, width, giving=("answer", "problem"), least=LEAST)

    def _two_lines(self, width: int) -> RenderResult:
        names, problems, answers = map(self._cells, ("thread", "problem", "answer"))
        columns = [self._cells(title) for title in FACTS]
        for column in columns:
            longest = max(cell.cell_len for cell in column)
            for cell in column:
                cell.pad_right(longest - cell.cell_len)
        short = [name.cell_len for name in names if name.cell_len <= SHORT_NAME]
        facts = [Text("  ").join(cells) for cells in zip(*columns, strict=True)]
        for name, said, problem, answer in zip(names, facts, problems, answers, strict=True):
            name.pad_right(max(short, default=0) - name.cell_len)
            if name.cell_len + 2 + said.cell_len <= width:
                yield name + Text("  ") + said
            else:
                yield unbroken(name)
                yield Text("  ") + said
            line = Text("  ") + problem
            if answer.plain != NOTHING:
                room = max(2 + LEAST, width - len(ARROW) - answer.cell_len, width * 3 // 5)
                line.truncate(room, overflow="ellipsis")
                line += Text(ARROW, "dim") + answer
            line.truncate(width, overflow="ellipsis")
            yield line


def _state(run: ListedRun, now: datetime) -> Text:
    style = {"finished": "green", "running": "cyan", "stopped": "yellow"}.get(run.state, "red")
    return Text(run.state, style)


def _age(run: ListedRun, now: datetime) -> Text:
    seconds = max(0, (now - datetime.fromisoformat(run.updated)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return Text(f"{seconds // length:.0f} {unit}")
    return Text(f"{seconds:.0f} s")


def _answer(run: ListedRun, now: datetime) -> Text:
    said = run.answer if run.reason is None else run.reason
    style = "" if run.reason is None else "red"
    return Text(NOTHING if said is None else one_line(said), style)


NOTHING = "–"
"""Stands for what is not known."""
CELLS: Mapping[str, Callable[[ListedRun, datetime], Text]] = {
    "thread": lambda run, now: Text(one_line(run.thread_id)),
    "state": _state,
    "preset": lambda run, now: Text(one_line(run.preset or NOTHING)),
    "age": _age,
    "size": lambda run, now: Text(NOTHING if run.bytes is None else decimal(run.bytes), "dim"),
    "at": lambda run, now: Text(one_line(run.node or NOTHING), "dim"),
    "run by": lambda run, now: Text(one_line(run.lease or NOTHING), "dim"),
    "problem": lambda run, now: Text(one_line(run.problem or NOTHING)),
    "answer": _answer,
}
"""What each column shows. The age is the time since the last write."""
WIDE_ONLY = ("size", "at", "run by")
FACTS = ("state", "preset", "age")
LEAST, PROBLEM_CELLS = 12, 32
"""Least columns of a problem or answer in a table, and most of a problem."""
SHORT_NAME = 14
"""Columns of names that are aligned."""
ARROW = "  →  "


CHUNK_BYTES = 1 << 20

Action = Callable[[RedisSaver, ThreadsCommand, Output], Awaitable[None]]


def _action(command: ThreadsCommand) -> Action | None:
    """Return what to do with the named runs; None lists all.

    Raises:
        ConfigError: the options do not fit together.
    """
    actions: Mapping[str, tuple[bool, Action]] = {
        "--prune": (command.prune, _prune),
        "--delete": (command.delete, _delete),
        "--export": (command.export_to is not None, _export),
        "--import": (command.import_from is not None, _import),
    }
    asked = [name for name, (wanted, _) in actions.items() if wanted]
    named = len(command.threads) or int(command.last)
    if command.last and command.threads:
        raise ConfigError(
            f"{command.threads[0]!r} names a run, and --last takes another; drop one of them"
        )
    if command.last and command.import_from is not None:
        raise ConfigError("--import stores a run anew, and --last names a stored one; drop --last")
    if len(asked) > 1:
        raise ConfigError(f"{' and '.join(asked)} do different things; use one at a time")
    if named and not asked:
        raise ConfigError(
            "threads are named, but not what to do with them; add --prune, --delete or --export, "
            "or show one with `pdr-graph inspect`"
        )
    if command.keep is not None and not command.prune:
        raise ConfigError(f"--keep {command.keep} says how much --prune leaves; add --prune")
    if command.read_older and command.import_from is None:
        raise ConfigError("--read-older says what --import takes; add --import FILE")
    if command.delete and not named:
        raise ConfigError("--delete needs the names of threads; `pdr-graph threads` lists them")
    if command.export_to is not None:
        if named != 1:
            raise ConfigError(f"--export writes one thread, {named} are named")
        if command.export_to.exists():
            raise ConfigError(f"--export {str(command.export_to)!r} exists; choose another file")
        if not command.export_to.absolute().parent.is_dir():
            raise ConfigError(
                f"--export {str(command.export_to)!r} cannot be written: its folder is not there"
            )
        refuse_place(command.export_to, "--export")
    if command.import_from is not None:
        if named > 1:
            raise ConfigError(f"--import stores one thread, {named} names are given for it")
        if not command.import_from.is_file():
            raise ConfigError(f"--import {str(command.import_from)!r} is no file")
    return actions[asked[0]][1] if asked else None


async def _known(saver: RedisSaver, command: ThreadsCommand) -> Sequence[str]:
    """Return the whole names of the threads that are meant, once all are known to exist."""
    typed = [None] if command.last else command.threads
    threads = [await named_thread(saver, each) for each in typed]
    for thread in threads:
        if await saver.thread(thread) is None:
            raise UnknownThreadError(thread)
    return threads


async def _prune(saver: RedisSaver, command: ThreadsCommand, output: Output) -> None:
    named = await _known(saver, command)
    infos = [] if named else await saver.threads()
    odd = [info.thread_id for info in infos if info.trouble is not None]
    for thread in named or [info.thread_id for info in infos if info.trouble is None]:
        try:
            # Under its lease: a run in progress keeps what it needs.
            async with alone(saver, thread, output.say):
                if command.keep is None:
                    await saver.aprune([thread], strategy="inspection")
                else:
                    await saver.aprune([thread], strategy="keep_latest", keep=command.keep)
        except CorruptCheckpointError:
            if named:
                raise
            odd.append(thread)
        else:
            output.say(f"pruned thread {one_line(thread)}")
    if odd:
        _tell_odd(odd, "cannot be read, and was not pruned", output)


async def _delete(saver: RedisSaver, command: ThreadsCommand, output: Output) -> None:
    for thread in await _known(saver, command):
        async with alone(saver, thread, output.say):
            await saver.adelete_thread(thread)
        output.say(f"deleted thread {one_line(thread)}")


async def _export(saver: RedisSaver, command: ThreadsCommand, output: Output) -> None:
    """Write the whole file, or no file."""
    (thread,), file = await _known(saver, command), command.export_to
    assert file is not None
    with written_whole(file) as out:
        async for chunk in saver.export_thread(thread):
            await asyncio.to_thread(out.write, chunk)
    output.say(f"exported thread {one_line(thread)} to {file}", to_copy=True)


async def _import(saver: RedisSaver, command: ThreadsCommand, output: Output) -> None:
    assert command.import_from is not None
    wanted = command.threads[0] if command.threads else None
    name = await saver.import_thread(_chunks(command.import_from), thread_id=wanted)
    output.say(f"imported thread {one_line(name)} from {command.import_from}", to_copy=True)


async def _chunks(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        while chunk := await asyncio.to_thread(source.read, CHUNK_BYTES):
            yield chunk
