"""Keepers: the processes that each start one server, keep its record, and end it.

`pdr-graph up` and `down` start keepers, wait for them and end them, by the functions here. A keeper
is this module as a process, with the plan on its standard input and the part's lock, already taken,
among its open files, so that it is known from its first instant. It leads a session of its own, so
that the terminal's signals do not reach it, and ends at SIGTERM.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.errors import LocalError, PDRError
from pdr_graph.process import Outliving, Process
from pdr_graph.servers import embedded_model, embedded_valkey
from pdr_graph.servers.data_dir import FileLock, fresh_log, key_file, last_lines
from pdr_graph.servers.record import (
    LOCK_WAIT_S,
    TITLES,
    Part,
    ServerPlan,
    ServerRecord,
    Shelf,
    without_password,
)
from pdr_graph.servers.server import GRACE_S, LOOK_S, CommandServer, answers, not_up

POLL_S = 0.1
END_S = 2 * GRACE_S + 5.0
"""Seconds for a keeper to end: its server's grace, and as much for processes killed after it."""

MISSING_S = 5.0
"""Seconds without a keeper after which none is expected any more."""


@dataclass(slots=True)
class Start:
    """A keeper that was started."""

    plan: ServerPlan
    process: Outliving | None
    """None if another command has just started one for the same part."""


def start(shelf: Shelf, plan: ServerPlan) -> Start:
    """Start a keeper, which goes on when this process ends.

    Raises:
        LocalError: It cannot be started.
    """
    log = fresh_log(shelf.made().log(plan.part))
    data_dir = str(shelf.data_dir.absolute())
    try:
        with shelf.lock(plan.part) as lock:
            if not _taken(lock, shelf, plan.part):
                return Start(plan, None)
            process = Outliving(
                "pdr_graph.servers.keeper",
                data_dir,
                log=log,
                lock=lock.descriptor,
                stdin=subprocess.PIPE,
            )
        assert process.stdin is not None  # we asked for a pipe
        # Not on the command line, which others can read: a plan may hold a key.
        with process.stdin:
            process.stdin.write(plan.to_json().encode())
        return Start(plan, process)
    except OSError as error:
        raise LocalError(
            f"{TITLES[plan.kind]} cannot be started: {error.strerror or error}; "
            f"its log is {str(log)!r}"
        ) from error


def _taken(lock: FileLock, shelf: Shelf, part: Part) -> bool:
    """Take the lock of a part; False if a keeper holds it and is not about to end."""
    begin = time.monotonic()
    while not lock.try_exclusive():
        record = shelf.read(part)
        ending = record is not None and record.state == "failed"
        if time.monotonic() - begin > (END_S if ending else LOCK_WAIT_S):
            return False
        time.sleep(0.01)
    return True


async def until_ready(
    shelf: Shelf,
    part: Part,
    tell: Callable[[ServerRecord], None],
    process: Outliving | None = None,
) -> ServerRecord:
    """Wait until a part that is being started answers.

    Args:
        shelf: The folder of its record.
        part: The part.
        tell: Receives its record several times a second.
        process: Its keeper, if this process started it.

    Raises:
        LocalError: It failed or was ended; the sentence has the reason and the log.
    """
    seen = time.monotonic()
    while True:
        status = None if process is None else process.poll()
        kept, record = shelf.is_kept(part), shelf.read(part)
        if record is not None and process is not None:
            # Until our keeper has written its record, the record may be that of an earlier keeper.
            record = record if record.keeper.pid == process.pid else None
        if record is not None and not kept and record.state == "failed":
            raise LocalError(record.error)
        if kept:
            seen = time.monotonic()
            if record is not None:
                if record.state == "ready":
                    return record
                tell(record)
        elif status is not None or time.monotonic() - seen > MISSING_S:
            said = (last_lines(shelf.log(part)) or ["it said nothing"])[-1]
            raise LocalError(
                f"the {part} server was ended while it started ({said}); "
                f"its log is {str(shelf.log(part))!r}"
            )
        await asyncio.sleep(POLL_S)


def stop(shelf: Shelf, begun: Start) -> None:
    """End a keeper that this process started, at whatever point of its start.

    Raises:
        LocalError: It does not end.
    """
    if begun.process is None:
        return
    # Through its process, since the keeper may not have written a record yet.
    begun.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        begun.process.wait(END_S)
    record = shelf.read(begun.plan.part)
    ours = record is not None and record.keeper.pid == begun.process.pid
    if begun.process.poll() is None or (ours and record is not None and record.state != "failed"):
        end(shelf, begun.plan.part)


def end(shelf: Shelf, part: Part) -> ServerRecord | None:
    """End a part in whatever state it is; return its record, now removed, None if it had none.

    Raises:
        LocalError: Its keeper does not end.
    """
    deadline, record = time.monotonic() + END_S, shelf.read(part)
    asked: Process | None = None
    while shelf.is_kept(part):
        record = shelf.read(part) or record
        if record is not None and record.keeper != asked:
            asked = record.keeper
            asked.signal(signal.SIGTERM)
        if time.monotonic() > deadline:
            if asked is None or not asked.signal(signal.SIGKILL):
                raise LocalError(
                    f"{shelf.lock(part).path} is held by a process that does not end; end it by "
                    "hand and try again"
                )
            asked.wait(GRACE_S)
            break
        time.sleep(POLL_S)
    if record is not None and record.server is not None:
        record.server.end_group(GRACE_S, shelf.home.resolve())
    shelf.remove(part)
    return record


WATCH_S = 1.0
MISSES = 5
"""Looks in a row, a second or more apart, after which a server that does not answer is dead."""


def main(data_dir: Path, lock: int) -> int:
    """Keep one part until asked to end, or until it ends by itself."""
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
