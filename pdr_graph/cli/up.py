"""From what was typed to `up`, `up --status` and `down`.

`pdr-graph up` and `pdr-graph down`: the servers of this machine.

`pdr-graph up`: start what is missing, wait until it answers, say how to use it.

How far servers are that are being started: one live line, or one every few seconds.

The variables that point other commands at the servers, and a file that keeps them.

`pdr-graph down`: end what `up` started, and nothing else; what was stored stays.
"""

import asyncio
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Self

import typer
from dotenv.parser import parse_stream
from rich.status import Status
from rich.text import Text

from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output, one_line
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.up_plan import Found, UpRequest, plan_model, plan_store
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, LocalError
from pdr_graph.servers.data_dir import last_lines
from pdr_graph.servers.launch import Start, end, start, stop, until_ready
from pdr_graph.servers.options import UpOptions
from pdr_graph.servers.record import PARTS, TITLES, Part, ServerPlan, ServerRecord, Shelf
from pdr_graph.settings import load_settings, read_settings


@dataclass(frozen=True, slots=True)
class ServersRequest:
    """What was typed after `up`."""

    options: Given
    strategy: Given
    places: Given
    further: tuple[str, ...]
    env_file: Path | None
    dry: bool


def up(asked: ServersRequest, *, status: bool, output: Output) -> None:
    """Start what is missing, or show what runs.

    Raises:
        ConfigError: words are left over, or an option has a value that it cannot have.
    """
    settings = load_settings(**asked.places)
    if status:
        from pdr_graph.cli.status import status_command

        status_command(Shelf(settings.data_dir), output)
        return
    if asked.further and not asked.further[0].startswith("-"):
        raise ConfigError(
            f"{asked.further[0]!r} is no option; flags of vLLM's own come after `--`, as in "
            "`pdr-graph up --model NAME -- --tensor-parallel-size 2`"
        )
    options = read_settings(UpOptions, asked.options)
    from pdr_graph.cli.up_plan import UpRequest, asked_of

    of_model, of_store = asked_of(asked.places, asked.options, asked.strategy, asked.further)
    request = UpRequest(
        settings, options, asked.strategy, of_model, of_store, asked.further, asked.dry
    )
    up_command(request, asked.env_file, output)


def down(parts: Sequence[str], places: Given, output: Output) -> None:
    """End what runs."""
    down_command(parts, Shelf(load_settings(**places).data_dir), output)


SAY_EVERY_S = 15.0
LOOK_EVERY_S = 1.0
"""Between looks at a log."""


class Waiting:
    """Shows parts that are not ready yet."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._next: dict[Part, float] = {}
        self._lines: dict[Part, str] = {}
        live = output.stderr.is_terminal and not output.quiet
        self._status = Status("", console=output.stderr) if live else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def on(self, record: ServerRecord) -> None:
        """Show how a part is, unless it was shown just now."""
        now, every = time.monotonic(), LOOK_EVERY_S if self._status else SAY_EVERY_S
        if now < self._next.setdefault(record.part, now + every):
            return
        self._next[record.part] = now + every
        line = _line(record)
        if self._status is None:
            self._output.say(line)
            return
        self._lines[record.part] = line
        # One line for each, however narrow the terminal is.
        lines = Text("\n", no_wrap=True, overflow="ellipsis")
        self._status.update(lines.join(Text(each) for each in self._lines.values()))


def _line(record: ServerRecord) -> str:
    said = record.doing or "".join(last_lines(Path(record.log), 1))
    seconds = int(time.time() - record.since)
    return one_line(f"{record.part}: {TITLES[record.kind]} starts, {seconds} s: {said}")


MODEL_VARIABLE, STORE_VARIABLE = "PDR_BASE_URL", "PDR_REDIS_URL"


def check_env_file(file: Path) -> None:
    """Refuse a file before anything is started.

    Raises:
        ConfigError: it cannot be read and written, or is not one of NAME=value lines.
    """
    try:
        text = file.read_text("utf-8") if file.exists() else ""
        with file.open("a"):
            pass
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--env-file {str(file)!r} cannot be written: {why}") from None
    if any(each.error for each in parse_stream(StringIO(text))):
        raise ConfigError(f"--env-file {str(file)!r} holds lines that are no NAME=value")


def write_env_file(file: Path, variables: Mapping[str, str]) -> None:
    """Set variables in a file, whole or not at all; its other lines stay as they are."""
    text = file.read_text("utf-8") if file.exists() else ""
    kept = [
        each.original.string for each in parse_stream(StringIO(text)) if each.key not in variables
    ]
    body = "".join(kept)
    if body and not body.endswith("\n"):
        body += "\n"
    body += "".join(f"{name}={value}\n" for name, value in variables.items())
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(body)
    partial.replace(file)


LINES_OF_A_LOG = 8


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers, and whose doing it is."""

    how: str
    """`started` by this command, `running` since an earlier one, `found`: somebody else's."""
    url: str
    model: str = ""
    record: ServerRecord | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        record = self.record
        more = {} if record is None else {"kind": record.kind, "log": record.log}
        named = {"model": self.model} if self.model else {}
        return {"how": self.how, "url": self.url, **named, **more}


def up_command(request: UpRequest, env_file: Path | None, output: Output) -> None:
    """Start what is missing.

    Raises:
        typer.Exit: a signal ended it; what it had started is gone.
        LocalError: a server does not start; what was started beside it is gone too.
    """
    if env_file is not None:
        check_env_file(env_file)
    stopper = Stopper(output.tell)
    try:
        running = asyncio.run(_Up(request, output).carry_out(stopper))
    except asyncio.CancelledError:
        output.tell("stopped; nothing that was started here is left")
        raise typer.Exit(stopper.exit_code) from None
    if running is not None:
        _report(running, request, env_file, output)


class _Up:
    """One run of the command."""

    def __init__(self, request: UpRequest, output: Output) -> None:
        self.request = request
        self.output = output
        self.shelf = Shelf(request.settings.data_dir)
        self.started: list[Start] = []

    async def carry_out(self, stopper: Stopper) -> dict[Part, Running] | None:
        """Return what runs afterwards; None if only the plan was to be shown."""
        with stopper.listening():
            try:
                plans = await self._plans()
                if self.request.dry:
                    self._show_plans(plans)
                    return None
                # All at once: the store is up long before the model is.
                begun = {part: self._begun(part, plan) for part, plan in plans.items()}
                with Waiting(self.output) as waiting:
                    ready = await asyncio.gather(
                        *(self._ready(part, each, waiting) for part, each in begun.items())
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
                f"{TITLES[record.kind]} runs at {record.url} with other options "
                f"({before or 'none'}); `pdr-graph down {part}` ends it"
            )
        return record

    def _begun(self, part: Part, plan: ServerPlan | Found | ServerRecord) -> Start | Found | None:
        """Start what is to be started; None for what an earlier command did."""
        if not isinstance(plan, ServerPlan):
            return plan if isinstance(plan, Found) else None
        for note in plan.notes:
            self.output.say(f"note: {note}")
        self.output.say(f"{part}: starting {TITLES[plan.kind]}; its log is {self.shelf.log(part)}")
        begun = start(self.shelf, plan)
        self.started.append(begun)
        return begun

    async def _ready(self, part: Part, begun: Start | Found | None, waiting: Waiting) -> Running:
        if isinstance(begun, Found):
            self.output.say(f"{part}: found at {begun.url}, where it is configured")
            return Running("found", begun.url, begun.model)
        process = None if begun is None else begun.process
        try:
            record = await until_ready(self.shelf, part, waiting.on, process)
        except LocalError:
            for line in last_lines(self.shelf.log(part), LINES_OF_A_LOG):
                self.output.say(f"  {part}.log: {line}")
            raise
        how = "running" if begun is None else "started"
        self.output.say(f"{part}: {TITLES[record.kind]} {how} at {record.url}")
        return Running(how, record.url, record.model, record)

    def _undo(self) -> None:
        """End what this command started; the record of one that failed stays, to be looked at."""
        for each in self.started:
            with suppress(LocalError):
                stop(self.shelf, each)

    def _show_plans(self, plans: Mapping[Part, ServerPlan | Found | ServerRecord]) -> None:
        shown = {
            part: plan.shown()
            if isinstance(plan, ServerPlan)
            else f"# {part}: there, at {plan.url}"
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
        write_env_file(env_file, variables)
        output.say(f"written to {env_file}, which pdr-graph reads where it is called .env")
    if output.json:
        parts = {part: each.to_json() for part, each in running.items()}
        output.show_json({**parts, "environment": variables})
        return
    for name, value in variables.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
    record = running["model"].record
    if record is not None and record.kind == "embedded model":
        output.say("the embedded model needs small budgets, for instance:")
        output.tell(
            f"  pdr-graph solve {_budgets(request.config)} 'What is 17 + 25?'", to_copy=True
        )


def _budgets(config: PDRConfig) -> str:
    widths = ",".join(map(str, config.widths))
    return (
        f"--preset {config.preset} --widths {widths or shlex.quote('')} --kappa {config.kappa} "
        f"--max-tokens {config.max_tokens} --solution-tokens {config.solution_tokens}"
    )


def down_command(names: Sequence[str], shelf: Shelf, output: Output) -> None:
    """End the named parts, all without names.

    Raises:
        ConfigError: there is no such part.
        LocalError: a server does not end.
    """
    ended: list[ServerRecord] = []
    for part in _parts(names):
        record = end(shelf, part)
        if record is None:
            continue
        ended.append(record)
        if record.state == "failed":
            output.say(f"{part}: {TITLES[record.kind]} had failed: {record.error}")
        else:
            output.say(f"{part}: {TITLES[record.kind]} ended")
    if not ended:
        output.say("nothing that `pdr-graph up` started is running")
    if output.json:
        output.show_json({"ended": [{"part": each.part, "kind": each.kind} for each in ended]})


def _parts(names: Sequence[str]) -> Sequence[Part]:
    chosen = [part for part in PARTS if part in names or not names]
    unknown = next((name for name in names if name not in PARTS), None)
    if unknown is not None:
        raise ConfigError(f"there is no server {unknown!r}; there are {' and '.join(PARTS)}")
    return chosen
