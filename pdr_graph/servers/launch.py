"""Starting keepers, waiting for them, ending them: what `up` and `down` do."""

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from pdr_graph.errors import LocalError
from pdr_graph.servers import process as child
from pdr_graph.servers.data_dir import FileLock, fresh_log
from pdr_graph.servers.process import GRACE_S, TITLES, Part, Process, ServerPlan, last_lines
from pdr_graph.servers.record import LOCK_WAIT_S, ServerRecord, Shelf

POLL_S = 0.1
END_S = 2 * GRACE_S + 5.0
"""A keeper's time to end: its server's grace, and that of what it kills after it."""

MISSING_S = 5.0
"""Time without a keeper after which there will be none."""

Tell = Callable[[ServerRecord], None]
"""Told of a part's record each time it is looked at."""


class _Outliving(subprocess.Popen[bytes]):
    """A process that is meant to outlive us."""

    def __del__(self) -> None:
        """Be silent about that; the standard class would warn."""


@dataclass(slots=True)
class Start:
    """A keeper that begins."""

    plan: ServerPlan
    process: "subprocess.Popen[bytes] | None"
    """None where another command has just started one for the same part."""


def start(shelf: Shelf, plan: ServerPlan) -> Start:
    """Start a keeper; it goes on whatever becomes of us.

    Raises:
        LocalError: it cannot be started.
    """
    log = fresh_log(shelf.made().log(plan.part))
    try:
        with shelf.lock(plan.part) as lock, log.open("ab") as out:
            if not _taken(lock, shelf, plan.part):
                return Start(plan, None)
            return Start(plan, _run(shelf, plan, lock.descriptor, out))
    except OSError as error:
        raise LocalError(
            f"{TITLES[plan.kind]} cannot be started: {error.strerror or error}; its log is {log}"
        ) from error


def _taken(lock: FileLock, shelf: Shelf, part: Part) -> bool:
    """Take the lock of a part; False if a keeper has it that is not about to end."""
    begin = time.monotonic()
    while not lock.try_exclusive():
        record = shelf.read(part)
        ending = record is not None and record.state == "failed"
        if time.monotonic() - begin > (END_S if ending else LOCK_WAIT_S):
            return False
        time.sleep(0.01)
    return True


def _run(shelf: Shelf, plan: ServerPlan, lock: int, out: BinaryIO) -> "subprocess.Popen[bytes]":
    words = ("--data-dir", str(shelf.data_dir.absolute()), "--lock", str(lock))
    process = _Outliving(
        child.command("pdr_graph.servers.keeper", *words),
        cwd=shelf.home,
        env=child.environment(),
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=out,
        pass_fds=[lock],
        start_new_session=True,
    )
    assert process.stdin is not None  # we asked for a pipe
    # On its input, not its command line: a plan may hold a key.
    with process.stdin:
        process.stdin.write(plan.to_json().encode())
    return process


async def until_ready(
    shelf: Shelf, part: Part, tell: Tell, process: "subprocess.Popen[bytes] | None" = None
) -> ServerRecord:
    """Wait until a part that is being started answers.

    Args:
        shelf: Where its record is.
        part: Which.
        tell: Told how it is, several times a second.
        process: Its keeper, if it is ours.

    Raises:
        LocalError: it failed, or was ended; with the reason and where its log is.
    """
    seen = time.monotonic()
    while True:
        status = None if process is None else process.poll()
        kept, record = shelf.is_kept(part), shelf.read(part)
        if record is not None and process is not None:
            # Until our keeper writes its own, the record is that of an earlier one.
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
            said = (last_lines(shelf.log(part), 1) or ["it said nothing"])[-1]
            raise LocalError(
                f"the {part} server was ended while it started ({said}); "
                f"its log is {shelf.log(part)}"
            )
        await asyncio.sleep(POLL_S)


def stop(shelf: Shelf, begun: Start) -> None:
    """End a keeper that we started, however far it has come.

    Raises:
        LocalError: it does not end.
    """
    if begun.process is None:
        return
    # By its process, since it may be too young to have a record.
    begun.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        begun.process.wait(END_S)
    record = shelf.read(begun.plan.part)
    ours = record is not None and record.keeper.pid == begun.process.pid
    if begun.process.poll() is None or (ours and record is not None and record.state != "failed"):
        end(shelf, begun.plan.part)


def end(shelf: Shelf, part: Part) -> ServerRecord | None:
    """End a part, whatever state it is in, and forget it.

    Returns:
        Its record, None if there was nothing.

    Raises:
        LocalError: its keeper does not end.
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
