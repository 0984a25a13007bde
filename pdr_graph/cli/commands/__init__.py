"""Every command with its options; what each does is imported when it is called.

What many commands take, and where what they say goes.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pdr_graph.cli.options import OUTPUT
from pdr_graph.cli.output import LogLines, Output

Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON object.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show errors only.", rich_help_panel=OUTPUT)]
TraceFile = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Append every model call in full to this file, one JSON object a line.",
        rich_help_panel=OUTPUT,
    ),
]


def output_of(json: bool, quiet: bool, logs: int = logging.WARNING) -> Output:
    """Open the output of a command, and let log lines go through it."""
    output = Output(json=json, quiet=quiet)
    LogLines(output, logs).install()
    return output
