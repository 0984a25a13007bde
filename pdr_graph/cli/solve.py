"""`pdr-graph solve` and `pdr-graph resume`.

One run from its store to its result, and what to tell when it ends before that.

Where the problem comes from: the argument, a file, or standard input.
"""

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.cli.failure import RunEndedError
from pdr_graph.cli.options import Given, flag_of
from pdr_graph.cli.output import Output, one_line
from pdr_graph.cli.progress import STARTING, Progress, shown
from pdr_graph.cli.render import result_parts
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.store import MEMORY, Saver, alone, open_saver
from pdr_graph.config import PDRConfig
from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError, DrainedError, OtherGraphError, ThreadExistsError
from pdr_graph.llm.client import ModelClient
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts, Result, new_thread_id, resume, solve
from pdr_graph.run_history import history
from pdr_graph.servers.llama import announcement, small_config
from pdr_graph.settings import Settings, load_settings
from pdr_graph.strategies import PRESETS, preset
from pdr_graph.trace import JsonLinesTrace, Trace

Check = Callable[[Saver], Awaitable[Progress]]
"""Looks at the thread before a model is started; returns the progress that the run starts from."""

Start = Callable[[ModelClient, Saver, Parts], Awaitable[Result]]
"""Starts the run, or goes on with it."""


@dataclass(slots=True)
class RunSession:
    """What a run needs from its surroundings."""

    settings: Settings
    output: Output
    thread_id: str
    resume_command: str
    prompts: Prompts | None
    trace: Trace | None
    progress: Progress | None = None
    """None until the run begins."""

    async def carry_out(self, check: Check, start: Start) -> Result:
        """Run to the end.

        Raises:
            RunEndedError: the run was stopped, or failed once it had begun.
        """
        stopper = Stopper(self.output.tell)
        with stopper.listening():
            try:
                return await self._run(check, start, stopper)
            except DrainedError as error:
                raise self._ended(stopper.exit_code, None) from error
            except asyncio.CancelledError:
                if stopper.received is None:
                    raise
                raise self._ended(stopper.exit_code, None) from None
            except (ConfigError, ThreadExistsError):
                raise
            # Whatever ended the run, the top of the command line says it; here we add the way on.
            except Exception as error:
                if not self._asked_anything:
                    raise
                raise self._ended(None, error) from error

    async def _run(self, check: Check, start: Start, stopper: Stopper) -> Result:
        say = self.output.say
        async with open_saver(self.settings, say) as saver:
            before = await check(saver)
            async with (
                alone(saver, self.thread_id, say),
                open_client(self.settings, announce=say) as client,
                shown(self.output, before) as on_event,
            ):
                parts = Parts(
                    prompts=self.prompts,
                    trace=self.trace,
                    on_event=on_event,
                    control=stopper.control,
                )
                self.progress = before
                with stopper.draining():
                    return await start(client, saver, parts)

    def _ended(self, exit_code: int | None, cause: Exception | None) -> RunEndedError:
        if self.progress is None:
            way_on = "stopped before the run had begun"
        elif self.settings.redis_url == MEMORY:
            way_on = "the run was kept in memory and cannot be resumed; --checkpoint URL keeps one"
        else:
            way_on = f"resume with: {self.resume_command}"
        return RunEndedError(way_on, exit_code, cause)

    @property
    def _asked_anything(self) -> bool:
        """Whether the run came so far that going on with it makes sense."""
        return self.progress is not None and self.progress.doing != STARTING


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
) -> RunSession:
    return RunSession(
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


def _show(result: Result, session: RunSession, given: Given) -> None:
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


def read_problem(argument: str | None, file: Path | None) -> str:
    """Return the problem's text.

    Raises:
        ConfigError: there is none, there are two, or it cannot be read.
    """
    if argument is not None and file is not None:
        raise ConfigError("the problem is given twice, as an argument and by --file; drop one")
    if argument is not None and argument != "-":
        # Bytes of the command line that are no UTF-8 arrive as lone surrogates.
        return _stated(argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    if file is not None:
        return _stated(_decoded(_bytes_of(file), f"--file {str(file)!r}"))
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise ConfigError("no problem is given; pass it as an argument, by --file or by a pipe")
    return _stated(_decoded(sys.stdin.buffer.read(), "standard input"))


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--file {str(file)!r} cannot be read: {error.strerror}") from None


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source} is not UTF-8 text (byte {error.start}); convert it, as with iconv"
        ) from None


def _stated(problem: str) -> str:
    if not problem.strip():
        raise ConfigError("the problem is empty; state the task to be solved")
    return problem
