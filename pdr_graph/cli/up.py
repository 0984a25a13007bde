"""`pdr-graph up` and `down`: start the servers that this machine lacks, show them, stop them.

`up_plan` decides what `up` has to start. If `up` fails, it stops what it has started. It may write
the addresses to a `.env`, which it trusts; `pdr-graph trust` trusts any `.env`.
"""

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer
from dotenv import set_key
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pdr_graph.cli.commands import DownCommand, TrustCommand, UpCommand
from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.live import Board, LiveDisplay, duration
from pdr_graph.cli.output import Output, Sentence, fitted, one_line, unbroken
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.up_plan import Found, UpRequest, plan_model, plan_store
from pdr_graph.errors import ConfigError, LocalError
from pdr_graph.servers.data_dir import last_lines
from pdr_graph.servers.keeper import Start, end, start, stop, until_ready
from pdr_graph.servers.record import (
    PARTS,
    TITLES,
    Part,
    ServerPlan,
    ServerRecord,
    Shelf,
    without_password,
)
from pdr_graph.servers.server import answers
from pdr_graph.settings import ENV_FILE, EnvFile, load_settings

MODEL_VARIABLE, STORE_VARIABLE = "PDR_BASE_URL", "PDR_REDIS_URL"
LINES_OF_A_LOG = 8


def up_command(command: UpCommand, output: Output) -> None:
    """Start what is missing, or show what runs.

    Raises:
        ConfigError: words are left over, or an option has a value that it cannot have.
        RunEndedError: a signal ended it; what it had started is gone.
        LocalError: a server does not start; what was started beside it is gone too.
    """
    if command.status:
        _show_status(Shelf(load_settings(**command.places).data_dir), output)
        return
    request = UpRequest.of(command)
    if command.env_file is not None:
        _check_writable(command.env_file)
    running = asyncio.run(_Up(request, output).carry_out())
    if running is not None:
        _report(running, request, command.env_file, output)


def down_command(command: DownCommand, output: Output) -> None:
    """Stop the named parts, all without names.

    Raises:
        ConfigError: there is no such part.
        LocalError: a server does not end.
    """
    shelf = Shelf(load_settings(**command.places).data_dir)
    ended: list[ServerRecord] = []
    for part in _parts(command.parts):
        record = end(shelf, part)
        if record is None:
            continue
        ended.append(record)
        if record.state == "failed":
            output.say(f"{part}: {TITLES[record.kind]} had failed: {record.error}")
        else:
            output.say(f"{part}: {TITLES[record.kind]} stopped")
    if not ended:
        output.say(NOTHING_RUNS)
    if output.json:
        output.show_json({"ended": [{"part": each.part, "kind": each.kind} for each in ended]})


def trust_command(command: TrustCommand, output: Output) -> None:
    """Note that the user trusts a file, or does not any more; show what it sets.

    Raises:
        ConfigError: the folder has no such file, or the trust cannot be noted.
    """
    file = EnvFile.read(command.folder / ENV_FILE)
    if file is None:
        raise ConfigError(f"{str((command.folder / ENV_FILE).resolve())!r} is not there; make it")
    if command.forget:
        file.take_trust()
    else:
        file.give_trust()
    names = list(file.variables(refer=False))
    if output.json:
        output.show_json({"file": str(file.path), "trusted": not command.forget, "sets": names})
    else:
        how = "is not trusted any more" if command.forget else "is trusted until it changes"
        output.say(f"{str(file.path)!r} {how}; it sets {', '.join(names) or 'nothing'}")


class StartBoard(Board):
    """The servers that are not ready yet."""

    silence_s = 15.0

    def __init__(self) -> None:
        self.records: dict[Part, ServerRecord] = {}

    def on(self, record: ServerRecord) -> None:
        """Take the newest record of a part."""
        self.records[record.part] = record

    def details(self) -> list[list[str]]:
        """Return a line for each server."""
        return [[line] for line in self.lines()]

    def lines(self) -> list[str]:
        """Say of each server how long it has been starting, and what it said last."""
        return [
            f"{each.part}: {TITLES[each.kind]} starts, {int(time.time() - each.since)} s: "
            + (each.doing or "".join(last_lines(Path(each.log), 1)))
            for each in list(self.records.values())
            if each.state == "starting"
        ]


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers, and who started it."""

    how: str
    """`started` by this command, `running` since an earlier one, or `found`: others started it."""
    url: str
    model: str = ""
    record: ServerRecord | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        record = self.record
        more = {} if record is None else {"kind": record.kind, "log": record.log}
        if record is not None and record.key_file:
            more["key_file"] = record.key_file
        named = {"model": self.model} if self.model else {}
        return {"how": self.how, "url": self.url, **named, **more}


class _Up:
    """One run of the command."""

    def __init__(self, request: UpRequest, output: Output) -> None:
        self.request = request
        self.output = output
        self.shelf = Shelf(request.settings.data_dir)
        self.started: list[Start] = []

    async def carry_out(self) -> dict[Part, Running] | None:
        """Return what runs afterwards; None if only the plan was to be shown."""
        stopper = Stopper(self.output.tell)
        with stopper.ending(lambda: "stopped; what was started here is stopped too", lambda: False):
            try:
                plans = await self._plans()
                if self.request.dry:
                    self._show_plans(plans)
                    return None
                # All start at the same time: the store is ready long before the model.
                begun = {part: self._begun(part, plan) for part, plan in plans.items()}
                board = StartBoard()
                with LiveDisplay(self.output, board):
                    ready = await asyncio.gather(
                        *(self._ready(part, each, board) for part, each in begun.items())
                    )
                return dict(zip(begun, ready, strict=True))
            except BaseException:
                await asyncio.shield(asyncio.to_thread(self._undo))
                raise

    async def _plans(self) -> dict[Part, ServerPlan | Found | ServerRecord]:
        plans: dict[Part, ServerPlan | Found | ServerRecord] = {}
        request = self.request
        model = self._kept("model", request.model_asked)
        plans["model"] = await plan_model(request) if model is None else model
        store = self._kept("store", request.store_asked) or await plan_store(request)
        if store is not None:
            plans["store"] = store
        return plans

    def _kept(self, part: Part, asked: Mapping[str, str]) -> ServerRecord | None:
        """Return the record of a part that an earlier `up` started.

        Raises:
            ConfigError: it was started with other options than are given now.
        """
        record = self.shelf.read(part) if self.shelf.is_kept(part) else None
        if record is not None and record.state == "failed":
            return None  # its keeper is about to end
        if record is not None and asked and dict(asked) != dict(record.asked):
            before = " ".join(f"{name} {value}" for name, value in record.asked.items())
            raise ConfigError(
                f"{TITLES[record.kind]} runs at {record.shown_url} with other options "
                f"({before or 'none'}); `pdr-graph down {part}` ends it"
            )
        return record

    def _begun(self, part: Part, plan: ServerPlan | Found | ServerRecord) -> Start | Found | None:
        """Start a part that is planned; None for a part that an earlier command started."""
        if not isinstance(plan, ServerPlan):
            return plan if isinstance(plan, Found) else None
        for note in plan.notes:
            self.output.say(f"note: {note}")
        self.output.say(
            f"{part}: starting {TITLES[plan.kind]}; its log is {self.shelf.log(part)}", to_copy=True
        )
        begun = start(self.shelf, plan)
        self.started.append(begun)
        return begun

    async def _ready(self, part: Part, begun: Start | Found | None, board: StartBoard) -> Running:
        if isinstance(begun, Found):
            self.output.say(
                f"{part}: found at {without_password(begun.url)}, where it is configured"
            )
            return Running("found", begun.url, begun.model)
        process = None if begun is None else begun.process
        try:
            record = await until_ready(self.shelf, part, board.on, process)
        except LocalError:
            for line in last_lines(self.shelf.log(part), LINES_OF_A_LOG):
                self.output.say(f"  {part}.log: {line}")
            raise
        done = "already runs" if begun is None else "has started"
        self.output.say(f"{part}: {TITLES[record.kind]} {done} at {record.shown_url}")
        how = "running" if begun is None else "started"
        return Running(how, record.url, record.model, record)

    def _undo(self) -> None:
        """End the servers that this command started; the record of a failed one stays."""
        for each in self.started:
            with suppress(LocalError):
                stop(self.shelf, each)

    def _show_plans(self, plans: Mapping[Part, ServerPlan | Found | ServerRecord]) -> None:
        shown = {
            part: plan.shown()
            if isinstance(plan, ServerPlan)
            else f"# {part}: there, at {without_password(plan.url)}"
            for part, plan in plans.items()
        }
        for plan in plans.values():
            for note in plan.notes if isinstance(plan, ServerPlan) else ():
                self.output.say(f"note: {note}")
        if self.output.json:
            self.output.show_json(shown)
        else:
            typer.echo("\n".join(map(one_line, shown.values())))


def _report(
    running: Mapping[Part, Running], request: UpRequest, env_file: Path | None, output: Output
) -> None:
    names: Mapping[Part, str] = {"model": MODEL_VARIABLE, "store": STORE_VARIABLE}
    variables = {names[part]: each.url for part, each in running.items()}
    if env_file is not None:
        secret = any(without_password(value) != value for value in variables.values())
        if secret and not env_file.is_symlink():
            env_file.chmod(0o600)
        for name, value in variables.items():
            set_key(env_file, name, value, quote_mode="never")
        written = EnvFile.read(env_file)
        assert written is not None  # we have just written it
        output.say(f"written to {env_file}; pdr-graph reads it if it is called .env")
        try:
            written.give_trust()  # the user has named it
        except ConfigError as error:
            output.tell(f"warning: {env_file} could not be trusted: {error}")
    if output.json:
        parts = {part: each.to_json() for part, each in running.items()}
        output.show_json({**parts, "environment": variables})
        return
    hidden = False
    for name, value in variables.items():
        shown = without_password(value) if sys.stdout.isatty() else value
        hidden = hidden or shown != value
        typer.echo(f"export {name}={shlex.quote(shown)}")
    if hidden:
        output.say("the password is not shown; this sets all, with it:")
        output.say('  eval "$(pdr-graph up)"', to_copy=True)
    record = running["model"].record
    if record is not None and record.key_file:
        output.say("pdr-graph finds the model server's key by itself; for other clients:")
        output.say(f'  export OPENAI_API_KEY="$(cat {shlex.quote(record.key_file)})"', to_copy=True)
    if record is not None and record.kind == "embedded model":
        output.say("it has small budgets of its own; with the variables above:")
        output.say("  pdr-graph solve 'What is 17 + 25?'", to_copy=True)


def _check_writable(file: Path) -> None:
    """Refuse a file of variables before anything is started."""
    EnvFile.read(file)
    try:
        # A new one is for its owner alone: the address of a store may hold a password.
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(f"--env-file {str(file)!r} cannot be written: {error.strerror}") from None


def _parts(names: Sequence[str]) -> Sequence[Part]:
    chosen = [part for part in PARTS if part in names or not names]
    unknown = next((name for name in names if name not in PARTS), None)
    if unknown is not None:
        raise ConfigError(f"there is no server {unknown!r}; there are {' and '.join(PARTS)}")
    return chosen


STYLES = {"ready": "green", "starting": "yellow"}
LOST = "its keeper was killed"
NOTHING_RUNS = "nothing that `pdr-graph up` started is running"


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of a part, as seen from outside."""

    part: Part
    state: str
    """`ready`, `starting`, `silent` (it does not answer), `failed`, or `lost` (its keeper is
    gone)."""
    record: ServerRecord
    why: str = ""

    @property
    def is_well(self) -> bool:
        """Whether it needs no attention."""
        return self.state in STYLES


def standings(shelf: Shelf) -> list[Standing]:
    """Look at every part that `up` started.

    Raises:
        LocalError: a record is not one of ours.
    """
    found = []
    for part in PARTS:
        kept, record = shelf.is_kept(part), shelf.read(part)
        if record is not None:
            found.append(_standing(part, record, kept=kept))
    return found


def _show_status(shelf: Shelf, output: Output) -> None:
    """Show the servers.

    Raises:
        typer.Exit: one of them is not well, or none runs.
    """
    found = standings(shelf)
    if output.json:
        output.show_json({each.part: _plain(each) for each in found})
    elif found:
        output.show(StatusTable(found, time.time()))
    else:
        output.say(NOTHING_RUNS)
    if not found or not all(each.is_well for each in found):
        raise typer.Exit(FAILED)


def _standing(part: Part, record: ServerRecord, *, kept: bool) -> Standing:
    if record.state == "failed":
        return Standing(part, "failed", record, record.error)
    if not kept:
        return Standing(part, "lost", record, LOST)
    if record.state == "ready" and not answers(record.url):
        return Standing(part, "silent", record, f"nothing answers at {record.shown_url}")
    return Standing(part, record.state, record, record.doing)


def _plain(standing: Standing) -> dict[str, object]:
    record = standing.record
    return {
        "state": standing.state,
        "why": standing.why,
        "kind": record.kind,
        "url": record.shown_url,
        "model": record.model,
        "keeper": record.keeper.pid,
        "server": None if record.server is None else record.server.pid,
        "since": record.since,
        "log": record.log,
        "command": list(record.command),
    }


class StatusTable:
    """One line for each server; addresses stand beneath where they do not fit.

    What else is cut is in the output of `--json`.
    """

    def __init__(self, found: Sequence[Standing], now: float) -> None:
        self._found = found
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        titles = ["server", "state", "since", "kind", "model", "address"]
        rows = [
            (
                Text(each.part),
                Text(each.state, STYLES.get(each.state, "bold red")),
                Text(duration(self._now - each.record.since)),
                Text(TITLES[each.record.kind].removeprefix("the ")),
                Text(one_line(each.record.model)),
                Text(one_line(each.record.shown_url)),
            )
            for each in self._found
        ]
        table = fitted(titles, rows, options.max_width, giving=["model", "kind"], least=16)
        if table is None:
            cut = [row[:-1] for row in rows]
            table = fitted(titles[:-1], cut, options.max_width, giving=["model", "kind"], least=8)
            yield table or Text("\n").join(Text(" ").join(row) for row in cut)
            yield from (Sentence(f"{each.part}: {each.record.shown_url}") for each in self._found)
        else:
            yield table
        for each in self._found:
            if each.why:
                yield Sentence(f"{each.part}: {each.why}", "" if each.is_well else "red")
            if not each.is_well:
                yield unbroken(Text(one_line(f"{each.part}: its log is {each.record.log}")))
