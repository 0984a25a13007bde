"""`pdr-graph solve` and `resume`: runs from their store to their results."""

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from pdr_graph.cli.commands import CONFIG, ResumeCommand, RunCommand, SolveCommand
from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.options import Given, flag_of, with_variables
from pdr_graph.cli.output import Output, Prose, one_line, unbroken
from pdr_graph.cli.run_display import (
    STARTING,
    RunProgress,
    result_parts,
    shown,
)
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.store import MEMORY, Saver, alone, check_named, named_thread, open_saver
from pdr_graph.config import PAPER, PRESETS, PDRConfig, base_preset, default_config, preset
from pdr_graph.connect import check_settings, open_judge, open_models
from pdr_graph.errors import ConfigError, OtherGraphError, ThreadExistsError, redacted
from pdr_graph.prompts import Prompts
from pdr_graph.servers.llama import announcement, is_small, small_config
from pdr_graph.servers.record import without_password
from pdr_graph.settings import Settings, load_settings
from pdr_graph.trace import JsonLinesTrace
from pdr_graph.types import new_thread_id
from pdr_graph.validation import check_problem

if TYPE_CHECKING:  # LangGraph loads once the endpoint has answered
    from pdr_graph.judge import DraftJudge
    from pdr_graph.llm.models import Models
    from pdr_graph.run import Parts, Result

Check = Callable[[Saver], Awaitable[RunProgress]]
"""Looks at the thread before a model is started; returns the progress that the run starts from."""

Start = Callable[["Models", Saver, "Parts"], Awaitable["Result"]]
"""Starts or resumes the run."""


@dataclass(slots=True)
class RunSession:
    """What a run needs from its surroundings."""

    command: RunCommand
    output: Output
    settings: Settings
    thread_id: str
    prompts: Prompts | None
    """None is the built-in ones."""
    judge: "DraftJudge | None"
    """Weighs the drafts, if there is one."""
    progress: RunProgress | None = None
    """None until the run begins."""

    @classmethod
    def of(cls, command: RunCommand, thread_id: str, output: Output) -> "RunSession":
        """Read the settings of a command, and the files that they name.

        Raises:
            ConfigError: the settings are malformed or disagree, a file cannot be read, the judge
                file is no judge, or the trace cannot be written.
        """
        if command.answer_only and command.as_json:
            raise ConfigError("--answer-only and --json write different things; drop one of them")
        if command.trace is not None:
            try:
                command.trace.open("a").close()
            except OSError as error:
                raise ConfigError(
                    f"--trace {str(command.trace)!r} cannot be written: {error.strerror}"
                ) from None
        settings = load_settings(**command.settings)
        check_settings(settings)
        prompts = None if settings.prompts is None else Prompts.load(settings.prompts)
        return cls(command, output, settings, thread_id, prompts, open_judge(settings))

    @property
    def judge_is_typed(self) -> bool:
        """Whether the judge is meant for this run, and not for any run that may weigh drafts."""
        return "judge" in self.command.settings

    async def carry_out(self, check: Check, start: Start) -> "Result":
        """Run to the end.

        Raises:
            RunEndedError: the run was stopped, or failed once it had begun.
        """
        say, stopper = self.output.say, Stopper(self.output.tell)
        trace = self.command.trace
        with stopper.ending(self._way_on, self._asked_anything):
            async with open_saver(self.settings, say) as saver:
                progress = await check(saver)
                async with (
                    alone(saver, self.thread_id, say),
                    open_models(self.settings, announce=say) as models,
                ):
                    from pdr_graph.extensions import Extensions
                    from pdr_graph.run import Parts

                    if self.judge is not None:
                        await self.judge.meet(models.client("drafter"))
                    if self.settings.redis_url != MEMORY:
                        say(f"thread {one_line(self.thread_id)}")
                    with shown(self.output, progress) as on_event, stopper.draining():
                        self.progress = progress
                        parts = Parts(
                            extensions=None if self.judge is None else Extensions(judge=self.judge),
                            prompts=self.prompts,
                            trace=None if trace is None else JsonLinesTrace(trace),
                            on_event=on_event,
                            control=stopper.control,
                        )
                        return await start(models, saver, parts)

    def show(self, result: "Result") -> None:
        """Show how a run ended."""
        if self.command.answer_only:
            _show_answer(result, self.output)
        elif self.output.json:
            for note in result.notes:
                self.output.say(f"note: {note}")
            self.output.show_json(result.to_json())
        else:
            look_closer = inspect_line(result.thread_id, self.settings, self.command.settings)
            self.output.show(*result_parts(result, look_closer))

    def _way_on(self) -> str:
        if self.progress is None:
            return "stopped before the run had begun"
        if self.settings.redis_url == MEMORY:
            return "the run was kept in memory and cannot be resumed; --checkpoint URL keeps one"
        from pdr_graph.extensions import STEPS

        code = {
            name: value
            for name, value in self.command.config.items()
            if name in STEPS and ":" in str(value)
        }
        given = {**code, **self.command.settings}
        return f"resume with: {command_line('resume', self.thread_id, given)}"

    def _asked_anything(self) -> bool:
        """Tell whether there is anything to resume."""
        return self.progress is not None and self.progress.doing != STARTING


def _show_answer(result: "Result", output: Output) -> None:
    """Write only the answer; for the answer kind `text`, which has none, write the solution.

    Raises:
        typer.Exit: the solution states no answer, which a script must notice.
    """
    if result.answer is not None:
        output.show(unbroken(Text(one_line(result.answer))))
    elif result.config.answer == "text":
        output.show(Prose(result.solution))
    else:
        output.tell(
            "error: the solution states no answer; "
            f"`pdr-graph inspect {shlex.quote(result.thread_id)}` shows it",
            "red",
        )
        raise typer.Exit(FAILED)


_PARTS = frozenset({"distiller", "finish", "verifier", "answer"})
"""Fields whose names may be wrong."""


def solve_command(command: SolveCommand, output: Output) -> None:
    """Solve a problem and show the result."""
    problem = read_problem(command.problem, command.file)
    session = RunSession.of(command, command.thread or new_thread_id(), output)
    given = with_variables(command.config, CONFIG, command.settings_file, output.say)
    small = is_small(session.settings)
    config = _config(given, small=small)
    if not session.judge_is_typed:
        session.judge = session.judge if config.weighs else None
    if session.judge is not None or _PARTS & given.keys():
        # Only then: the parts of presets are ours, and this loads LangGraph.
        from pdr_graph.extensions import Extensions

        Extensions(judge=session.judge).with_code(config).check(config)
    if base_preset(given) != base_preset({**given, "answer": ""}):
        output.say(f"answers of kind text cannot be voted on: the preset is {PAPER}")
    if small:
        output.say(announcement(config, session.settings.base_url))

    async def check(saver: Saver) -> RunProgress:
        if await saver.aget_tuple({"configurable": {"thread_id": session.thread_id}}) is not None:
            raise ThreadExistsError(session.thread_id)
        return RunProgress(len(config.widths))

    async def start(models: "Models", saver: Saver, parts: "Parts") -> "Result":
        from pdr_graph.run import solve

        return await solve(
            problem,
            config,
            model=models,
            checkpointer=saver,
            thread_id=session.thread_id,
            parts=parts,
        )

    session.show(asyncio.run(session.carry_out(check, start)))


def resume_command(command: ResumeCommand, output: Output) -> None:
    """Continue a run and show the result."""
    check_named(command.thread, last=command.last)
    name = command.config.get("preset")
    if name is not None and name not in PRESETS:
        preset(str(name))  # says which there are
    session = RunSession.of(command, command.thread or "", output)
    changes, answer = dict(command.config), None

    async def check(saver: Saver) -> RunProgress:
        from pdr_graph.run_history import history

        nonlocal answer
        session.thread_id = await named_thread(saver, command.thread)
        past = await history(session.thread_id, checkpointer=saver)
        if not session.judge_is_typed and not (past.record and past.record.get("judge")):
            session.judge = None  # it was begun without one
        if past.namespace:
            raise OtherGraphError(session.thread_id)
        if past.questions:
            # For a run that waits, --answer is the person's answer, and not the answer kind.
            answer = changes.pop("answer", None)
        progress = RunProgress(len(past.config.widths), tokens=past.ledger.b_total)
        if past.rounds and {"drafter", "distiller"} & set(past.next):
            last = past.rounds[-1]
            progress.continue_from(last.round, last.width, last.drafts)
        return progress

    async def start(models: "Models", saver: Saver, parts: "Parts") -> "Result":
        from pdr_graph.run import resume

        return await resume(
            session.thread_id,
            model=models,
            checkpointer=saver,
            changes=changes,
            answer=answer,
            parts=parts,
        )

    session.show(asyncio.run(session.carry_out(check, start)))


def command_line(verb: str, thread_id: str, given: Mapping[str, object]) -> str:
    """Return the command that inspects or resumes a run that was started with options.

    The API key is left out, and so is the password of a URL: the line goes to logs.
    """
    flags: list[str] = []
    for name, value in given.items():
        if isinstance(value, list):
            flags += [part for each in value for part in (flag_of(name), redacted(str(each)))]
        elif name != "api_key":
            is_url = name in {"redis_url", "base_url"}
            shown = without_password(str(value)) if is_url else str(value)
            flags += [flag_of(name), shown]
    place = ["--", thread_id] if thread_id.startswith("-") else [thread_id]
    words = [*flags, *place] if len(place) > 1 else [*place, *flags]
    return one_line(shlex.join(["pdr-graph", verb, *words]))


def inspect_line(thread_id: str, settings: Settings, given: Given) -> str | None:
    """Return the command that shows more of a run; None where the run is not kept."""
    if settings.redis_url == MEMORY:
        return None
    shared = {"redis_url", "data_dir", "max_bytes", "_env_file"}
    storage = {name: value for name, value in given.items() if name in shared}
    return command_line("inspect", thread_id, storage)


def _config(given: Given, *, small: bool) -> PDRConfig:
    fields = {name: value for name, value in given.items() if name != "preset"}
    return small_config(base_preset(given), fields) if small else default_config(given)


def read_problem(argument: str | None, file: Path | None) -> str:
    """Return the problem's text.

    Raises:
        ConfigError: there is none, there are two, or it cannot be read.
    """
    if argument is not None and file is not None:
        raise ConfigError("the problem is given twice, as an argument and by --file; drop one")
    if argument is not None and argument != "-":
        # Bytes of the command line that are no UTF-8 arrive as lone surrogates.
        problem = argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    elif file is not None:
        problem = _decoded(_bytes_of(file), f"--file {str(file)!r}")
    elif sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise ConfigError("no problem is given; pass it as an argument, by --file or by a pipe")
    else:
        problem = _decoded(sys.stdin.buffer.read(), "standard input")
    check_problem(problem)
    return problem


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
