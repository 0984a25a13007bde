"""`pdr-graph doctor`: what works, what does not, and what to do about it."""

import asyncio
from dataclasses import asdict

import typer
from rich.table import Table
from rich.text import Text

from pdr_graph.cli.doctor.check import Check, guarded
from pdr_graph.cli.doctor.host import host_checks
from pdr_graph.cli.doctor.model import model_checks
from pdr_graph.cli.doctor.servers import server_checks
from pdr_graph.cli.doctor.store import store_checks
from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output
from pdr_graph.cli.text import one_line
from pdr_graph.settings import Settings, load_settings

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor_command(given: Given, output: Output) -> None:
    """Check everything that a run needs.

    Raises:
        typer.Exit: something fails.
    """
    checks = asyncio.run(_all_checks(load_settings(**given)))
    fails = any(check.status == "fail" for check in checks)
    if output.json:
        output.show_json({"ok": not fails, "checks": [asdict(check) for check in checks]})
    else:
        output.show(_report(checks))
    if fails:
        raise typer.Exit(FAILED)


async def _all_checks(settings: Settings) -> list[Check]:
    return [
        *host_checks(settings),
        *await guarded("servers", lambda: server_checks(settings)),
        *await guarded("endpoint", lambda: model_checks(settings)),
        *await guarded("store", lambda: store_checks(settings)),
    ]


def _report(checks: list[Check]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for check in checks:
        detail = Text(one_line(check.detail))
        if check.remedy:
            detail += Text(f"\n→ {one_line(check.remedy)}", "bold")
        table.add_row(Text(check.status, _STYLES[check.status]), Text(check.name), detail)
    return table
