"""`pdr-graph solve` and `pdr-graph resume`."""

import asyncio
import shlex
from collections.abc import Mapping
from pathlib import Path

from pdr_graph.cli.options import Given, flag_of
from pdr_graph.cli.output import Output
from pdr_graph.cli.progress import Progress
from pdr_graph.cli.render import result_parts
from pdr_graph.cli.session import Session
from pdr_graph.cli.stores import MEMORY, Saver
from pdr_graph.cli.text import one_line
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, OtherGraphError, ThreadExistsError
from pdr_graph.llm.client import ModelClient
from pdr_graph.local.budgets import announcement, small_config
from pdr_graph.prompts import Prompts
from pdr_graph.result import Result
from pdr_graph.run import Parts, new_thread_id, resume, solve
from pdr_graph.run_history import history
from pdr_graph.settings import Settings, load_settings
from pdr_graph.strategies import PRESETS, preset
from pdr_graph.trace import JsonLinesTrace

SECRET = "api_key"


def solve_command(
    problem: str,
    thread_id: str | None,
    given_config: Given,
    given_settings: Given,
    trace: Path | None,
    output: Output,
) -> None:
    """Solve a problem and show the result."""
    settings = load_settings(**given_settings)
    config = _config(given_config, embedded=settings.base_url is None)
    session = _session(thread_id or new_thread_id(), settings, given_settings, trace, output)
    if settings.base_url is None:
        output.say(announcement(config))

    async def check(saver: Saver) -> Progress:
        if await saver.aget_tuple({"configurable": {"thread_id": session.thread_id}}) is not None:
            raise ThreadExistsError(session.thread_id)
        return Progress(len(config.widths))

    async def start(client: ModelClient, saver: Saver, parts: Parts) -> Result:
        return await solve(
            problem,
            config,
            model=client,
            checkpointer=saver,
            thread_id=session.thread_id,
            parts=parts,
        )

    _show(asyncio.run(session.carry_out(check, start)), session, given_settings)


def resume_command(
    thread_id: str, given_config: Given, given_settings: Given, trace: Path | None, output: Output
) -> None:
    """Go on with a run and show the result."""
    settings = load_settings(**given_settings)
    name = given_config.get("preset")
    if name is not None and name not in PRESETS:
        preset(str(name))  # says which there are
    session = _session(thread_id, settings, given_settings, trace, output)

    async def check(saver: Saver) -> Progress:
        past = await history(thread_id, checkpointer=saver)
        if past.namespace:
            raise OtherGraphError(thread_id)
        progress = Progress(len(past.config.widths), tokens=past.ledger.b_total)
        if past.rounds and {"drafter", "distiller"} & set(past.next):
            last = past.rounds[-1]
            progress.continue_from(last.round, last.width, last.drafts)
        return progress

    async def start(client: ModelClient, saver: Saver, parts: Parts) -> Result:
        return await resume(
            thread_id, model=client, checkpointer=saver, changes=given_config, parts=parts
        )

    _show(asyncio.run(session.carry_out(check, start)), session, given_settings)


def command_line(verb: str, thread_id: str, given: Mapping[str, object]) -> str:
    """Return the command that looks at, or goes on with, a run that was started with options.

    The API key is left out, and so is the password of a URL: the line goes to logs.
    """
    flags: list[str] = []
    for name, value in given.items():
        if name != SECRET:
            shown = _without_password(str(value)) if name == "redis_url" else str(value)
            flags += [flag_of(name), shown]
    place = ["--", thread_id] if thread_id.startswith("-") else [thread_id]
    words = (
        ["pdr-graph", verb, *flags, *place]
        if len(place) > 1
        else ["pdr-graph", verb, *place, *flags]
    )
    return one_line(shlex.join(words))


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    return f"{scheme}{separator}{name}{colon and ':***'}{at}{host}"


def _config(given: Given, *, embedded: bool) -> PDRConfig:
    fields = dict(given)
    name = str(fields.pop("preset", PDRConfig.model_fields["preset"].default))
    return small_config(name, fields) if embedded else preset(name, **fields)


def _session(
    thread_id: str, settings: Settings, given: Given, trace: Path | None, output: Output
) -> Session:
    return Session(
        settings=settings,
        output=output,
        thread_id=thread_id,
        resume_command=command_line("resume", thread_id, given),
        prompts=None if settings.prompts is None else Prompts.load(settings.prompts),
        trace=None if trace is None else JsonLinesTrace(_writable(trace)),
    )


def _writable(file: Path) -> Path:
    try:
        file.open("a").close()
    except OSError as error:
        raise ConfigError(f"--trace {str(file)!r} cannot be written: {error.strerror}") from None
    return file


def _show(result: Result, session: Session, given: Given) -> None:
    output = session.output
    if output.json:
        for note in result.notes:
            output.say(f"note: {note}")
        output.show_json(result.to_json())
        return
    kept = session.settings.redis_url != MEMORY
    storage = {name: value for name, value in given.items() if name in {"redis_url", "data_dir"}}
    look_closer = command_line("inspect", result.thread_id, storage) if kept else None
    output.show(*result_parts(result, look_closer))
