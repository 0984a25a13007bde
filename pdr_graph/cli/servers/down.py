"""`pdr-graph down`: end what `up` started, and nothing else; what was stored stays."""

from collections.abc import Sequence

from pdr_graph.cli.output import Output
from pdr_graph.errors import ConfigError
from pdr_graph.stack.plan import PARTS, TITLES, Part
from pdr_graph.stack.record import Record, Shelf
from pdr_graph.stack.starting import end


def down_command(names: Sequence[str], shelf: Shelf, output: Output) -> None:
    """End the named parts, all without names.

    Raises:
        ConfigError: there is no such part.
        LocalError: a server does not end.
    """
    ended: list[Record] = []
    for part in _parts(names):
        record = end(shelf, part)
        if record is None:
            continue
        ended.append(record)
        if record.state == "failed":
            output.say(f"{part}: {TITLES[record.kind]} had failed: {record.error}")
        else:
            output.say(f"{part}: {TITLES[record.kind]} ended")
    if not ended:
        output.say("nothing that `pdr-graph up` started is running")
    if output.json:
        output.show_json({"ended": [{"part": each.part, "kind": each.kind} for each in ended]})


def _parts(names: Sequence[str]) -> Sequence[Part]:
    chosen = [part for part in PARTS if part in names or not names]
    unknown = next((name for name in names if name not in PARTS), None)
    if unknown is not None:
        raise ConfigError(f"there is no server {unknown!r}; there are {' and '.join(PARTS)}")
    return chosen
