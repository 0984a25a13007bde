"""The process that starts one server, keeps its record, and ends it.

`starting` runs it, with the plan on its standard input and the part's lock, already taken, among
its open files: from its first instant it is known to be there. It leads a session of its own, so
the terminal's signals do not reach it, and ends at SIGTERM.

The embedded parts, held open by a keeper.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from pdr_graph.errors import LocalError, PDRError
from pdr_graph.servers import embedded_model, embedded_valkey
from pdr_graph.servers.data_dir import Announce
from pdr_graph.servers.process import GRACE_S, TITLES, Process, Served, ServerPlan, answers, served
from pdr_graph.servers.record import ServerRecord, Shelf

WATCH_S = 1.0


def main() -> int:
    """Keep one part until told to end, or until it ends by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--lock", type=int, required=True, help="descriptor that holds it")
    asked = parser.parse_args()
    os.set_inheritable(asked.lock, False)  # it is ours as long as we live, and nobody else's
    shelf = Shelf(asked.data_dir).made()
    plan = ServerPlan.from_json(sys.stdin.read())
    os.umask(0o077)
    before = shelf.read(plan.part)
    if before is not None and before.server is not None:
        before.server.end_group(GRACE_S, shelf.home)  # its keeper was killed, and it lived on
    return asyncio.run(_Keeper(plan, shelf).keep())


class _Keeper:
    """The part's record, and what changes it."""

    def __init__(self, plan: ServerPlan, shelf: Shelf) -> None:
        self.plan = plan
        self.shelf = shelf
        self.log = shelf.log(plan.part)
        this = Process.of(os.getpid())
        assert this is not None  # it runs
        self.record = ServerRecord.begin(plan, this, self.log)

    async def keep(self) -> int:
        """Return the exit status."""
        task = asyncio.current_task()
        assert task is not None  # it is called by one
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, task.cancel)
        self._note()
        try:
            await self._serve()
        except asyncio.CancelledError:
            self.shelf.remove(self.plan.part)
            return 0
        except PDRError as error:
            self._note(state="failed", error=str(error))
            return 1
        return 0

    async def _serve(self) -> None:
        try:
            async with asyncio.timeout(self.plan.timeout_s) as limit, self._opened() as server:
                limit.reschedule(None)
                self._note(state="ready", url=server.url, model=server.model, doing="")
                while True:
                    await asyncio.sleep(WATCH_S)
                    await server.watch()
        except TimeoutError:
            raise LocalError(
                f"{TITLES[self.plan.kind]} was not up after {self.plan.timeout_s:g} s; "
                f"its log is {self.log}"
            ) from None

    def _opened(self) -> AbstractAsyncContextManager[Served]:
        if self.plan.command:
            return served(self.plan, self.log, lambda process: self._note(server=process))
        # Late: what an embedded part needs takes a while to import.

        return embedded(self.plan, self.shelf.data_dir, lambda line: self._note(doing=line))

    def _note(self, **changes: object) -> None:
        self.record = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]  # by name
        self.shelf.write(self.record)


MISSES = 5
"""Looks in a row, a second or more apart, after which a server that does not answer is dead."""


@asynccontextmanager
async def embedded(plan: ServerPlan, data_dir: Path, announce: Announce) -> AsyncIterator[Served]:
    """Hold an embedded part for as long as the context lasts.

    Raises:
        LocalError: it is not to be had, or does not start.
    """
    if plan.kind == "embedded valkey":
        async with embedded_valkey(
            data_dir, announce=announce, startup_timeout_s=plan.timeout_s
        ) as url:
            yield Served(url, "", _EmbeddedWatch(url, plan))
        return
    file = plan.settings.get("model_file")
    async with embedded_model(
        data_dir,
        slots=int(plan.settings["slots"]),
        context_per_slot=int(plan.settings["context_per_slot"]),
        port=int(plan.settings["port"]),
        model_file=None if file is None else Path(file),
        served_name=plan.model,
        announce=announce,
        startup_timeout_s=plan.timeout_s,
    ) as endpoint:
        yield Served(endpoint.base_url, endpoint.model, _EmbeddedWatch(endpoint.base_url, plan))


class _EmbeddedWatch:
    """Looks whether a server still answers."""

    def __init__(self, url: str, plan: ServerPlan) -> None:
        self.url = url
        self.title = TITLES[plan.kind]
        self.misses = 0

    async def __call__(self) -> None:
        well = await asyncio.to_thread(answers, self.url)
        self.misses = 0 if well else self.misses + 1
        if self.misses >= MISSES:
            raise LocalError(f"{self.title} at {self.url} answers no more")


if __name__ == "__main__":
    sys.exit(main())
