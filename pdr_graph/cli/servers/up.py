"""`pdr-graph up`: start what is missing, wait until it answers, say how to use it."""

import asyncio
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer

from pdr_graph.cli.output import Output
from pdr_graph.cli.servers.environment import (
    MODEL_VARIABLE,
    STORE_VARIABLE,
    check_env_file,
    write_env_file,
)
from pdr_graph.cli.servers.planning import Found, Request, plan_model, plan_store
from pdr_graph.cli.servers.waiting import Waiting
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.text import one_line
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, LocalError
from pdr_graph.stack.plan import TITLES, Part, Plan
from pdr_graph.stack.record import Record, Shelf
from pdr_graph.stack.served import last_lines
from pdr_graph.stack.starting import Start, start, stop, until_ready

LINES_OF_A_LOG = 8


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers, and whose doing it is."""

    how: str
    """`started` by this command, `running` since an earlier one, `found`: somebody else's."""
    url: str
    model: str = ""
    record: Record | None = None

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        record = self.record
        more = {} if record is None else {"kind": record.kind, "log": record.log}
        named = {"model": self.model} if self.model else {}
        return {"how": self.how, "url": self.url, **named, **more}


def up_command(request: Request, env_file: Path | None, output: Output) -> None:
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

    def __init__(self, request: Request, output: Output) -> None:
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

    async def _plans(self) -> dict[Part, Plan | Found | Record]:
        plans: dict[Part, Plan | Found | Record] = {}
        request = self.request
        model = self._kept("model", request.model_asked)
        plans["model"] = await plan_model(request) if model is None else model
        store = self._kept("store", request.store_asked) or await plan_store(request)
        if store is not None:
            plans["store"] = store
        return plans

    def _kept(self, part: Part, asked: Mapping[str, str]) -> Record | None:
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

    def _begun(self, part: Part, plan: Plan | Found | Record) -> Start | Found | None:
        """Start what is to be started; None for what an earlier command did."""
        if not isinstance(plan, Plan):
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

    def _show_plans(self, plans: Mapping[Part, Plan | Found | Record]) -> None:
        shown = {
            part: plan.shown() if isinstance(plan, Plan) else f"# {part}: there, at {plan.url}"
            for part, plan in plans.items()
        }
        for plan in plans.values():
            for note in plan.notes if isinstance(plan, Plan) else ():
                self.output.say(f"note: {note}")
        if self.output.json:
            self.output.show_json(shown)
        else:
            typer.echo("\n".join(map(one_line, shown.values())))


def _report(
    running: Mapping[Part, Running], request: Request, env_file: Path | None, output: Output
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
