"""Checks of the servers that `pdr-graph up` started; no lines where it started none."""

from pdr_graph.cli.doctor.check import Check
from pdr_graph.cli.servers.status import standings
from pdr_graph.settings import Settings
from pdr_graph.stack.plan import TITLES
from pdr_graph.stack.record import Shelf


async def server_checks(settings: Settings) -> list[Check]:
    """Check that each still answers."""
    checks = []
    for each in standings(Shelf(settings.data_dir)):
        name, title = f"{each.part} server", TITLES[each.record.kind]
        if each.is_well:
            checks.append(Check(name, "ok", f"{title} {each.state} at {each.record.url}"))
        else:
            remedy = f"`pdr-graph down {each.part}`, then `pdr-graph up`"
            checks.append(Check(name, "fail", f"{title} {each.state}: {each.why}", remedy))
    return checks
