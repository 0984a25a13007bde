"""What `pdr-graph up` and `down` do: start keepers, wait for them, end them."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from pdr_graph.errors import LocalError
from pdr_graph.process import Outliving, Process
from pdr_graph.servers.data_dir import FileLock, fresh_log, last_lines
from pdr_graph.servers.record import LOCK_WAIT_S, TITLES, Part, ServerPlan, ServerRecord, Shelf
from pdr_graph.servers.server import GRACE_S

POLL_S = 0.1
END_S = 2 * GRACE_S + 5.0
"""A keeper's time to end: its server's grace, and as much for what is then killed."""

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
            f"{TITLES[plan.kind]} cannot be started: {error.strerror or error}; its log is {log}"
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
            # Until our keeper has written its record, there may be that of an earlier one.
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
                f"its log is {shelf.log(part)}"
            )
        await asyncio.sleep(POLL_S)


def stop(shelf: Shelf, begun: Start) -> None:
    """End a keeper that this process started, at whatever point of its start.

    Raises:
        LocalError: It does not end.
    """
    if begun.process is None:
        return
    # By its process, since it may not have written a record yet.
    begun.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        begun.process.wait(END_S)
    record = shelf.read(begun.plan.part)
    ours = record is not None and record.keeper.pid == begun.process.pid
    if begun.process.poll() is None or (ours and record is not None and record.state != "failed"):
        end(shelf, begun.plan.part)


def end(shelf: Shelf, part: Part) -> ServerRecord | None:
    """End a part in whatever state it is, and remove its record.

    Returns:
        Its record, None if there was nothing.

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
