"""The command line: its commands, their help, and the process that runs one of them.

The help shows each option whole, whatever the width of the terminal. typer's own tables give each
part of an option a column, and cut names and examples to fit them.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from pdr_graph.cli import readable, readable_in_any_encoding, work_begins
from pdr_graph.cli.completion import words_to_complete

if TYPE_CHECKING:
    from pdr_graph.cli.options import Command, SettingsCommand
    from pdr_graph.cli.output import Output


class _Entry(NamedTuple):
    """One command: its model, the function that carries it out, and its line in the list."""

    model: str
    """Class in `commands`."""
    place: str
    """Module of this package and function."""
    summary: str
    """First paragraph of the model's docstring, for the help of a command that is not built."""


_COMMANDS: Mapping[str, _Entry] = {
    "solve": _Entry("SolveCommand", "solve:solve_command", "Solve a problem."),
    "resume": _Entry(
        "ResumeCommand",
        "solve:resume_command",
        "Continue a run that was stopped, killed or failed. Finished calls are not repeated.",
    ),
    "threads": _Entry(
        "ThreadsCommand",
        "threads:threads_command",
        "List stored runs, the latest first. Or prune, delete, export or import some.",
    ),
    "reseal": _Entry(
        "ResealCommand",
        "store:reseal_command",
        "Seal stored runs anew with the first encryption key. "
        "After a stop, the same command goes on.",
    ),
    "inspect": _Entry(
        "InspectCommand",
        "inspect:inspect_command",
        "Show a run: rounds, drafts, workspaces, solution, verdict, ledger.",
    ),
    "serve": _Entry(
        "ServeCommand",
        "serve:serve_command",
        "Serve presets as models of OpenAI's protocols. Requests may set all other fields.",
    ),
    "up": _Entry(
        "UpCommand",
        "up:up_command",
        "Start the model server and the store that this machine lacks. `down` stops them.",
    ),
    "down": _Entry(
        "DownCommand", "up:down_command", "Stop the servers that `up` started. Stored runs stay."
    ),
    "eval": _Entry(
        "EvalCommand",
        "eval:eval_command",
        "Measure strategies on problems. After a stop or crash, the same command continues.",
    ),
    "compare": _Entry(
        "CompareCommand",
        "compare:compare_command",
        "Compare the arms of evaluations: accuracy, cost, differences, and where answers are lost.",
    ),
    "judge": _Entry(
        "JudgeCommand",
        "judge:judge_command",
        "Fit a judge of drafts on evaluations, or say what one is worth on others.",
    ),
    "check": _Entry(
        "CheckCommand",
        "check:check_command",
        "Check answers against gold answers: JSON lines in, verdicts as JSON lines out.",
    ),
    "train": _Entry(
        "TrainCommand",
        "train:train_command",
        "Train a model to draft and refine. After a stop or crash, the same command continues.",
    ),
    "train-data": _Entry(
        "TrainDataCommand",
        "train:train_data_command",
        "Make supervised data from recorded runs: the calls of runs with a right answer.",
    ),
    "trust": _Entry(
        "TrustCommand",
        "up:trust_command",
        "Trust the `.env` of a folder, as it is now. All that it sets then counts.",
    ),
    "doctor": _Entry(
        "DoctorCommand",
        "doctor:doctor_command",
        "Check model, store and this machine. Each finding says what to do.",
    ),
    "demo": _Entry(
        "DemoCommand",
        "demo:demo_command",
        "Compare four strategies on eight short problems, or on one of yours, at equal budgets.",
    ),
}
"""In the order of the help. They are text: pydantic takes longer to load than the list to show."""


def make_app(only: str | None = None) -> typer.Typer:
    """Return the command line.

    Args:
        only: The one command whose options are built, to save time. None builds the options of all,
            to list them.
    """
    app = typer.Typer(
        name="pdr-graph",
        cls=GroupWithHelp,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_entry)
    for name, entry in _COMMANDS.items():
        if only in {None, name}:
            app.command(name, cls=CommandWithHelp)(_with_options(entry))
        else:
            app.command(name, help=entry.summary)(lambda: None)
    return app


def _warn_of_unknown(command: "SettingsCommand", output: "Output") -> None:
    """Name the `PDR_…` variables that set nothing."""
    from pdr_graph.serve.options import ServeOptions
    from pdr_graph.servers.options import UpOptions
    from pdr_graph.settings import Settings, unknown_variables

    kinds = Settings, ServeOptions, UpOptions
    for name, nearest in unknown_variables(kinds, command.settings_file).items():
        hint = f"; did you mean {nearest}?" if nearest else ""
        output.say(f"warning: {name} is no setting{hint}")


def _with_options(entry: _Entry) -> Callable[..., None]:
    from pdr_graph.cli import commands
    from pdr_graph.cli.options import takes

    return takes(getattr(commands, entry.model))(_carried_out_by(entry.place))


def _carried_out_by(place: str) -> "Callable[[Command], None]":
    """Return a function that imports the one at `place` only when it is called."""

    def carry_out(command: "Command") -> None:
        from pdr_graph.cli.options import SettingsCommand
        from pdr_graph.cli.output import LogLines, Output

        output = Output(json=command.as_json, quiet=command.is_quiet)
        LogLines(output, command.logs).install()
        if isinstance(command, SettingsCommand):
            _warn_of_unknown(command, output)
        module, _, name = place.partition(":")
        function = getattr(import_module(f"pdr_graph.cli.{module}"), name)
        work_begins()
        function(command, output)

    return carry_out


def _entry(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", metavar="")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors (PDR_DEBUG).", metavar="")
    ] = False,
) -> None:
    """Parallel-Distill-Refine reasoning: many drafts, one bounded workspace, a better answer."""
    if show_version:
        from importlib.metadata import version

        typer.echo(f"pdr-graph {version('pdr-graph')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line of this process."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # they speak to developers
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started us
            setattr(sys, stream, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    readable_in_any_encoding()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error becomes one sentence."""
    words = arguments or words_to_complete()
    named = next((each for each in words if each in _COMMANDS), "")
    try:
        code = typer.main.get_command(make_app(named)).main(
            list(arguments), prog_name="pdr-graph", standalone_mode=False
        )
    # The top of the command line: nothing may leave it as a traceback.
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001
        from pdr_graph.cli.failure import end_of
        from pdr_graph.cli.output import Output
        from pdr_graph.settings import debug_wanted

        return end_of(error, Output(), debug=debug_wanted() or "--debug" in arguments)
    return code if isinstance(code, int) else 0


_Row = tuple[str, str, bool]
"""A name, its description, and whether it is required."""

NAMES, GAP = 26, 2
"""Columns of names, and after them; a longer name has a line of its own."""
SHORT = 12
"""Columns of names that are all short."""
WIDE, WIDEST = 72, 100
"""Columns from which names and texts stand side by side, and the longest line."""
INDENT = 6
"""Columns before a description that stands beneath its name."""


class CommandWithHelp(TyperCommand):
    """A command that shows its help by itself."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # Any: typer's own click
        """Write the help."""
        formatter.write(_screen(self, ctx))


class GroupWithHelp(TyperGroup):
    """All commands, with a line on each."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # Any: typer's own click
        """Write the help."""
        formatter.write(_screen(self, ctx))


def _screen(command: Any, context: Any) -> str:  # Any: typer's own click
    from rich.console import Console

    console = Console(highlight=False, emoji=False, soft_wrap=False)
    width = min(console.width, WIDEST)
    with console.capture() as captured:
        for part in _parts(command, context, width):
            console.print(part, width=width, crop=False)
    return readable(captured.get())


def _parts(command: Any, context: Any, width: int) -> Iterator[Any]:  # Any: what rich prints
    from rich.text import Text

    arguments = [each for each in command.get_params(context) if hasattr(each, "nargs")]
    options = [each for each in arguments if each.param_type_name == "option" and not each.hidden]
    arguments = [each for each in arguments if each.param_type_name == "argument"]
    commands = getattr(command, "commands", {})
    usage = [*map(_usage, arguments), *(["COMMAND"] if commands else [])]
    yield Text(" ".join(["Usage:", context.command_path, "[OPTIONS]", *usage]), "bold")
    yield Text()
    yield from _prose(command.help or "")
    if arguments:
        rows = [(_name_of(each), each.help or "", each.required) for each in arguments]
        yield from _section("Arguments", rows, width)
    panels: dict[str, list[_Row]] = {}
    for each in options:
        row = (_flags(each), each.help or "", each.required)
        panels.setdefault(each.rich_help_panel or "Options", []).append(row)
    for title, rows in panels.items():
        yield from _section(title, rows, width)
    rows = [(name, _first_paragraph(each.help or ""), False) for name, each in commands.items()]
    yield from _section("Commands", rows, width)


def _usage(argument: Any) -> str:
    name = f"{_name_of(argument)}{'...' if argument.nargs == -1 else ''}"
    return name if argument.required else f"[{name}]"


def _name_of(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    """Return how an option is typed: `-q, --quiet`, `--a / --no-a`, `--widths LIST`."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    metavar = "" if option.is_flag else option.metavar or "TEXT"
    return f"{names} {metavar}".rstrip()


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _prose(text: str) -> Iterator[Any]:
    """Yield the paragraphs; examples, which begin with an option, keep their lines."""
    from rich.padding import Padding
    from rich.text import Text

    for paragraph in filter(str.strip, text.split("\n\n")):
        lines = paragraph.strip("\n").splitlines()
        if lines[0].strip().startswith("--"):
            yield from (Padding(Text(line.strip()), (0, 0, 0, 4)) for line in lines)
        else:
            yield Text(" ".join(line.strip() for line in lines))
        yield Text()


def _section(title: str, rows: Sequence[_Row], width: int) -> Iterator[Any]:
    """Yield names and texts: side by side where there is room, else one beneath the other."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from pdr_graph.cli.output import wrapped

    if not rows:
        return
    longest = max(len(name) for name, _, _ in rows)
    names = longest if longest <= SHORT else NAMES
    yield Text(title, "bold")
    for name, text, required in rows:
        said = Text.from_markup(f"{text} (required)" if required else text).plain
        if width - names < WIDE - NAMES:
            yield Padding(Text(name, "cyan"), (0, 0, 0, GAP))
            yield Padding(Text("\n".join(wrapped(said, width - INDENT))), (0, 0, 0, INDENT))
            continue
        beside = len(name) <= names
        if not beside:
            yield Padding(Text(name, "cyan"), (0, 0, 0, GAP))
        line = Table.grid(padding=(0, GAP, 0, 0))
        line.add_column(width=names)
        line.add_column()
        lines = wrapped(said, width - names - 2 * GAP)
        line.add_row(Text(name if beside else "", "cyan"), Text("\n".join(lines)))
        yield Padding(line, (0, 0, 0, GAP))
    yield Text()
