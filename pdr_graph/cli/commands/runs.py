"""Runs: solve, resume, threads, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from pdr_graph.cli.commands import Json, Quiet, TraceFile, output_of
from pdr_graph.cli.options import CONFIG, OUTPUT, SETTINGS, STORAGE, Given, takes


@takes(config=CONFIG, settings=SETTINGS)
def solve(
    config: Given,
    settings: Given,
    problem: Annotated[
        str | None, typer.Argument(help="The problem; `-` or none reads standard input.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="Read the problem from a file."),
    ] = None,
    thread: Annotated[
        str | None, typer.Option("--thread", help="Name of the run; one is made up without.")
    ] = None,
    trace: TraceFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Solve a problem."""
    from pdr_graph.cli.solve import read_problem

    text = read_problem(problem, file)  # a mistake in it is told before the slow imports
    from pdr_graph.cli.solve import solve_command

    solve_command(text, thread, config, settings, trace, output_of(json, quiet))


@takes(config=CONFIG, settings=SETTINGS)
def resume(
    thread: Annotated[str, typer.Argument(help="The run, as `pdr-graph threads` lists it.")],
    config: Given,
    settings: Given,
    trace: TraceFile = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that was stopped, killed or failed; what is done is not done again."""
    from pdr_graph.cli.solve import resume_command

    resume_command(thread, config, settings, trace, output_of(json, quiet))


@takes(storage=STORAGE)
def threads(
    storage: Given,
    threads: Annotated[
        list[str] | None, typer.Argument(help="Runs to prune, delete or export.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="INTEGER", help="List no more than this.")
    ] = 20,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop old checkpoints of the named runs, or of all.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep",
            min=1,
            metavar="INTEGER",
            help="Checkpoints that --prune leaves; without it, what `inspect` shows.",
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the named runs.")] = False,
    export_to: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Write the named run to a file, exactly."),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option("--import", metavar="FILE", help="Store an exported run, as named if named."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the runs that are kept, the last written first; or prune, delete or move some."""
    from pdr_graph.cli.threads import Chore, keeping_command, threads_command

    chore = Chore(prune, delete, export_to, import_from, keep)
    if chore.asked or keep is not None or threads:
        keeping_command(chore, threads or [], storage, output_of(json, quiet))
    else:
        threads_command(storage, limit, output_of(json, quiet))


@takes(storage=STORAGE)
def inspect(
    thread: Annotated[str, typer.Argument(help="The run, as `pdr-graph threads` lists it.")],
    storage: Given,
    full: Annotated[bool, typer.Option("--full", help="Show every text whole.")] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Follow a run of another process to its end; JSON lines with --json."
        ),
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the run as one page that needs no network and runs no script.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a run: rounds, drafts, workspaces, solution, verdict, ledger."""
    from pdr_graph.cli.inspect import inspect_command

    inspect_command(
        thread, storage, full=full, watch=watch, page=html, output=output_of(json, quiet)
    )
