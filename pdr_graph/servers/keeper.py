"""The process that starts one server, keeps its record, and ends it.

`launch` runs it, with the plan on its standard input and the part's lock, already taken, among
its open files, so that it is known from its first instant. It leads a session of its own, so that
the terminal's signals do not reach it, and ends at SIGTERM.
"""

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pdr_graph.errors import LocalError, PDRError
from pdr_graph.process import Process
from pdr_graph.servers import embedded_model, embedded_valkey
from pdr_graph.servers.data_dir import key_file
from pdr_graph.servers.record import TITLES, ServerPlan, ServerRecord, Shelf, without_password
from pdr_graph.servers.server import GRACE_S, LOOK_S, CommandServer, answers, not_up

WATCH_S = 1.0
MISSES = 5
"""Looks in a row, a second or more apart, after which a server that does not answer is dead."""


def main(data_dir: Path, lock: int) -> int:
    """Keep one part until told to end, or until it ends by itself."""
    os.set_inheritable(lock, False)  # so that it is free as soon as the keeper is gone
    shelf = Shelf(data_dir).made()
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
        self.server: CommandServer | None = None
        """None for an embedded part."""
        this = Process.of(os.getpid())
        assert this is not None  # it runs
        self.record = ServerRecord(
            part=plan.part,
            kind=plan.kind,
            state="starting",
            keeper=this,
            url=plan.url,
            model=plan.model,
            log=str(self.log),
            command=plan.command,
            asked=plan.asked,
        )

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
            async with asyncio.timeout(self.plan.timeout_s) as limit, opened as (url, model):
                limit.reschedule(None)
                self._note(state="ready", url=url, model=model, doing="")
                await self._watch(url)
        except TimeoutError:
            raise not_up(self.plan, self.log) from None

    async def _watch(self, url: str) -> None:
        """Wait until the server has ended, or does not answer any more; then raise."""
        misses = 0
        while misses < MISSES:
            await asyncio.sleep(WATCH_S)
            if self.server is not None:
                self.server.check()
            else:
                misses = 0 if await asyncio.to_thread(answers, url) else misses + 1
        raise LocalError(
            f"{TITLES[self.plan.kind]} at {without_password(url)} does not answer any more"
        )

    @asynccontextmanager
    async def _command(self) -> AsyncIterator[tuple[str, str]]:
        """Run the command of the plan; lend URL and model."""
        self.server = server = CommandServer(self.plan, self.log)
        try:
            server.start()
            self._note(server=server.process)
            ready = False
            while not ready:
                await asyncio.sleep(LOOK_S)
                ready = await asyncio.to_thread(server.is_ready)
            yield self.plan.url, self.plan.model
        finally:
            await asyncio.to_thread(server.end)

    @asynccontextmanager
    async def _embedded(self) -> AsyncIterator[tuple[str, str]]:
        """Hold an embedded part; lend URL and model."""
        plan, data_dir = self.plan, self.shelf.data_dir
        if plan.kind == "embedded valkey":
            async with embedded_valkey(
                data_dir, announce=self._tell, startup_timeout_s=plan.timeout_s
            ) as url:
                yield url, ""
            return
        settings = dict(plan.settings)
        if "model_file" in settings:
            settings["model_file"] = Path(settings["model_file"])
        async with embedded_model(
            data_dir,
            **settings,
            served_name=plan.model,
            announce=self._tell,
            startup_timeout_s=plan.timeout_s,
        ) as endpoint:
            self._note(key_file=str(key_file(data_dir).absolute()))
            yield endpoint.base_url, endpoint.model

    def _tell(self, line: str) -> None:
        self._note(doing=line)

    def _note(self, **changes: object) -> None:
        self.record = dataclasses.replace(self.record, **changes)  # type: ignore[arg-type]  # by name
        self.shelf.write(self.record)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
