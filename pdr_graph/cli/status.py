"""`pdr-graph up --status`: the servers that `up` started, and how they are."""

import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from pdr_graph.cli.failure import FAILED
from pdr_graph.cli.output import Output, one_line
from pdr_graph.servers.record import PARTS, TITLES, Part, ServerRecord, Shelf
from pdr_graph.servers.server import answers

STYLES = {"ready": "green", "starting": "yellow"}
LOST = "its keeper was killed"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a part stands, as far as can be seen from outside."""

    part: Part
    state: str
    """`ready`, `starting`, `silent`: it does not answer, `failed`, or `lost`: its keeper is."""
    record: ServerRecord
    why: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing need be done."""
        return self.state in STYLES


def standings(shelf: Shelf) -> list[Standing]:
    """Look at every part that `up` started.

    Raises:
        LocalError: a record is not one of ours.
    """
    found = []
    for part in PARTS:
        kept, record = shelf.is_kept(part), shelf.read(part)
        if record is not None:
            found.append(_standing(part, record, kept=kept))
    return found


def status_command(shelf: Shelf, output: Output) -> None:
    """Show the servers.

    Raises:
        typer.Exit: one of them is not well, or none runs.
    """
    found = standings(shelf)
    if output.json:
        output.show_json({each.part: _plain(each) for each in found})
    elif found:
        output.show(_table(found))
    else:
        output.say("nothing that `pdr-graph up` started is running")
    if not found or not all(each.is_well for each in found):
        raise typer.Exit(FAILED)


def _standing(part: Part, record: ServerRecord, *, kept: bool) -> Standing:
    if record.state == "failed":
        return Standing(part, "failed", record, record.error)
    if not kept:
        return Standing(part, "lost", record, LOST)
    if record.state == "ready" and not answers(record.url):
        return Standing(part, "silent", record, f"nothing answers at {record.url}")
    return Standing(part, record.state, record, record.doing)


def _plain(standing: Standing) -> dict[str, object]:
    record = standing.record
    return {
        "state": standing.state,
        "why": standing.why,
        "kind": record.kind,
        "url": record.url,
        "model": record.model,
        "keeper": record.keeper.pid,
        "server": None if record.server is None else record.server.pid,
        "since": record.since,
        "log": record.log,
        "command": list(record.command),
    }


def _table(found: list[Standing]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in found:
        record = each.record
        seconds = timedelta(seconds=int(time.time() - record.since))
        lines = [
            f"{TITLES[record.kind]}, {each.why or each.state}, for {seconds}",
            record.url,
            *([f"model {record.model}"] if record.model else []),
            f"log {Path(record.log)}",
        ]
        head = Text(f"{each.part}\n") + Text(each.state, STYLES.get(each.state, "bold red"))
        table.add_row(head, Text("\n".join(one_line(line) for line in lines if line)))
    return table
