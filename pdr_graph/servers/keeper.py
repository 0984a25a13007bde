"""The process that starts one server, keeps its record, and ends it.

`launch` runs it, with the plan on its standard input and the part's lock, already taken, among
its open files, so that it is known from its first instant. It leads a session of its own, so that
the terminal's signals do not reach it, and ends at SIGTERM.
"""

import argparse
import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.errors import LocalError, PDRError
from pdr_graph.process import Process
from pdr_graph.servers import embedded_model, embedded_valkey
from pdr_graph.servers.record import TITLES, ServerPlan, ServerRecord, Shelf
from pdr_graph.servers.server import GRACE_S, LOOK_S, CommandServer, answers, not_up

WATCH_S = 1.0
MISSES = 5
"""Looks in a row, a second or more apart, after which a server that does not answer is dead."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers."""

    url: str
    model: str
    watch: Callable[[], Awaitable[None]]
    """Returns at once while the server is well.

    Raises:
        LocalError: It has ended, or does not answer any more.
    """


def main() -> int:
    """Keep one part until told to end, or until it ends by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--lock", type=int, required=True, help="descriptor that holds it")
    asked = parser.parse_args()
    os.set_inheritable(asked.lock, False)  # so that it is free as soon as the keeper is gone
    shelf = Shelf(asked.data_dir).made()
    plan = ServerPlan.from_json(sys.stdin.read())
    os.umask(0o077)
    before = shelf.read(plan.part)
    if before is not None and before.server is not None:
        # Its keeper was killed: the server is about to end, or lives on.
        before.server.end_group(GRACE_S, shelf.home)
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
        assert task is not None  # a task runs this
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
            opened = self._command() if self.plan.command else self._embedded()
            async with asyncio.timeout(self.plan.timeout_s) as limit, opened as server:
                limit.reschedule(None)
                self._note(state="ready", url=server.url, model=server.model, doing="")
                while True:
                    await asyncio.sleep(WATCH_S)
                    await server.watch()
        except TimeoutError:
            raise not_up(self.plan, self.log) from None

    @asynccontextmanager
    async def _command(self) -> AsyncIterator[Served]:
        """Run the command of the plan."""
        server = CommandServer(self.plan, self.log)

        async def watch() -> None:
            server.check()

        try:
            server.start()
            self._note(server=server.process)
            ready = False
            while not ready:
                await asyncio.sleep(LOOK_S)
                ready = await asyncio.to_thread(server.is_ready)
            yield Served(self.plan.url, self.plan.model, watch)
        finally:
            await asyncio.to_thread(server.end)

    @asynccontextmanager
    async def _embedded(self) -> AsyncIterator[Served]:
        """Hold an embedded part."""
        plan, data_dir = self.plan, self.shelf.data_dir
        if plan.kind == "embedded valkey":
            async with embedded_valkey(
                data_dir, announce=self._tell, startup_timeout_s=plan.timeout_s
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
            announce=self._tell,
            startup_timeout_s=plan.timeout_s,
        ) as endpoint:
            yield Served(endpoint.base_url, endpoint.model, _EmbeddedWatch(endpoint.base_url, plan))

    def _tell(self, line: str) -> None:
        self._note(doing=line)

    def _note(self, **changes: object) -> None:
        self.record = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]  # by name
        self.shelf.write(self.record)


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
            raise LocalError(f"{self.title} at {self.url} does not answer any more")


if __name__ == "__main__":
    sys.exit(main())
