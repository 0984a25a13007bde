"""The command line: its commands, and what becomes of their errors."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from pdr_graph.cli.commands import measures, runs, servers, training
from pdr_graph.cli.failure import INTERRUPTED, explain
from pdr_graph.cli.output import Output
from pdr_graph.settings import debug_wanted

app = typer.Typer(
    name="pdr-graph",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS: Mapping[str, Callable[..., None]] = {
    "solve": runs.solve,
    "resume": runs.resume,
    "threads": runs.threads,
    "inspect": runs.inspect,
    "serve": servers.serve,
    "up": servers.up,
    "down": servers.down,
    "eval": measures.evaluate,
    "compare": measures.compare,
    "check": measures.check,
    "train": training.train,
    "train-data": training.train_data,
    "doctor": servers.doctor,
    "demo": servers.demo,
}
"""In the order of the help."""

for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)


@app.callback(invoke_without_command=True)
def _entry(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks of errors (PDR_DEBUG).")
    ] = False,
) -> None:
    """Parallel-Distill-Refine reasoning: many drafts, one bounded workspace, a better answer."""
    if show_version:
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
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every error becomes one sentence."""
    from pdr_graph.cli.failure import RunEndedError

    debug = debug_wanted() or "--debug" in arguments
    output = Output()
    try:
        code = typer.main.get_command(app).main(
            list(arguments), prog_name="pdr-graph", standalone_mode=False
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    except RunEndedError as ended:
        code = ended.exit_code
        if ended.cause is not None:
            code = _report(ended.cause, output, debug=debug)
        output.tell(ended.way_on, to_copy=True)
    # The top of the command line: nothing may leave it as a traceback.
    except Exception as error:  # noqa: BLE001
        return _report(error, output, debug=debug)
    return code if isinstance(code, int) else 0


def _report(error: Exception, output: Output, *, debug: bool) -> int:
    failure = explain(error)
    if debug:
        traceback.print_exception(error)
    output.tell(f"error: {failure.sentence}", "red")
    return failure.exit_code
