"""Servers and this machine: serve, up, down, doctor, demo."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pdr_graph.cli.commands import Json, Quiet, output_of
from pdr_graph.cli.options import (
    DATA_DIR,
    DEFAULTS,
    OUTPUT,
    PLACES,
    SERVE,
    SETTINGS,
    SIZING,
    UP,
    Given,
    takes,
)


@takes(serve=SERVE, defaults=DEFAULTS, settings=SETTINGS)
def serve(
    serve: Given, defaults: Given, settings: Given, json: Json = False, quiet: Quiet = False
) -> None:
    """Answer in OpenAI's protocol, one model per preset; clients set all else in their requests."""
    from pdr_graph.cli.serve import serve_command

    serve_command(serve, defaults, settings, output_of(json, quiet))


@takes(up=UP, strategy=SIZING, places=PLACES)
def up(
    up: Given,
    strategy: Given,
    places: Given,
    further: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- FLAGS", help="Flags of vLLM's own, after `--`."),
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            help="Set the variables in this file too; `.env` is read by every command.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the commands and run none of them.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show what an earlier `up` started.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Start the model server and the store that this machine lacks; `down` ends them."""
    from pdr_graph.cli import up as commands

    asked = commands.ServersRequest(up, strategy, places, tuple(further or ()), env_file, dry_run)
    commands.up(asked, status=status, output=output_of(json, quiet))


@takes(places=DATA_DIR)
def down(
    places: Given,
    parts: Annotated[
        list[str] | None, typer.Argument(help="`model` or `store`; both without.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """End the servers that `up` started; what they stored stays."""
    from pdr_graph.cli import up as commands

    commands.down(parts or [], places, output=output_of(json, quiet))


@takes(settings=SETTINGS)
def doctor(settings: Given, json: Json = False) -> None:
    """Check model, store and this machine; each line says what to do."""
    from pdr_graph.cli.doctor import doctor_command

    # What the parts below warn of is in the report, with its remedy.
    doctor_command(settings, output_of(json, quiet=False, logs=logging.ERROR))


@takes(settings=SETTINGS)
def demo(
    settings: Given,
    problem: Annotated[
        str | None, typer.Argument(help="The problem; a sum about apples without.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show four strategies on one problem, their ledgers side by side."""
    from pdr_graph.cli.demo import demo_command

    demo_command(problem, settings, output_of(json, quiet))
