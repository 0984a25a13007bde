"""The command line: its commands, and the process that runs one of them."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated

import typer

from pdr_graph.cli import commands, interrupts_raise, readable_in_any_encoding
from pdr_graph.cli.completion import words_to_complete
from pdr_graph.cli.failure import end_of
from pdr_graph.cli.help_screen import CommandWithHelp, GroupWithHelp
from pdr_graph.cli.options import Command, takes
from pdr_graph.cli.output import LogLines, Output
from pdr_graph.settings import debug_wanted

_COMMANDS: Mapping[str, tuple[type[Command], str]] = {
    "solve": (commands.SolveCommand, "solve:solve_command"),
    "resume": (commands.ResumeCommand, "solve:resume_command"),
    "threads": (commands.ThreadsCommand, "threads:threads_command"),
    "reseal": (commands.ResealCommand, "store:reseal_command"),
    "inspect": (commands.InspectCommand, "inspect:inspect_command"),
    "serve": (commands.ServeCommand, "serve:serve_command"),
    "up": (commands.UpCommand, "up:up_command"),
    "down": (commands.DownCommand, "up:down_command"),
    "eval": (commands.EvalCommand, "eval:eval_command"),
    "compare": (commands.CompareCommand, "compare:compare_command"),
    "judge": (commands.JudgeCommand, "compare:judge_command"),
    "check": (commands.CheckCommand, "check:check_command"),
    "train": (commands.TrainCommand, "train:train_command"),
    "train-data": (commands.TrainDataCommand, "train:train_data_command"),
    "trust": (commands.TrustCommand, "up:trust_command"),
    "doctor": (commands.DoctorCommand, "doctor:doctor_command"),
    "demo": (commands.DemoCommand, "solve:demo_command"),
}
"""Each command with the function that carries it out, in the order of the help."""


def make_app(only: str | None = None) -> typer.Typer:
    """Return the command line.

    Args:
        only: The command that takes its options, to save the time of building the others'. None
            builds all, for those who lay out the options.
    """
    app = typer.Typer(
        name="pdr-graph",
        cls=GroupWithHelp,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_entry)
    for name, (model, place) in _COMMANDS.items():
        if only in {None, name}:
            app.command(name, cls=CommandWithHelp)(takes(model)(_carried_out_by(place)))
        else:
            app.command(name, help=model.__doc__)(lambda: None)
    return app


def _carried_out_by(place: str) -> Callable[[Command], None]:
    """Return a function that imports the one at `place` only when it is called."""

    def carry_out(command: Command) -> None:
        output = Output(json=command.as_json, quiet=command.is_quiet)
        LogLines(output, command.logs).install()
        module, _, name = place.partition(":")
        function = getattr(import_module(f"pdr_graph.cli.{module}"), name)
        interrupts_raise()
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
        return end_of(error, Output(), debug=debug_wanted() or "--debug" in arguments)
    return code if isinstance(code, int) else 0
