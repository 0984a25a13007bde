"""Processes of this machine: how they are identified, started and ended.

A process that must end with ours is started through a guard (`guarded`); one that must go on is
started as `Outliving`. Both lead a session, so that no Ctrl-C of the terminal reaches them. Both
lead a process group, so that they can be ended together with whatever they start.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

GUARD = Path(__file__).with_name("process_guard.py")
POLL_S = 0.05
KILLED_S = 10.0
"""Seconds to wait for the end of a process that was sent SIGKILL."""
CLOCK_STEP_S = 2.0
"""Two starts less far apart, in seconds, are the same: Linux counts a start from the boot, whose
time moves when the clock is set."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process, known by its number and its start, so that a reused number is not taken for it."""

    pid: int
    created: float
    """Start in seconds since 1970."""

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """Look a running process up; None if there is none, or only its exit status is left."""
        try:
            found = cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None
        return found if found.is_alive() else None

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return self._found() is not None

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; False if it is gone, even if its number is in use again."""
        found = self._found()
        try:
            if found is not None:
                found.send_signal(number)
        except psutil.NoSuchProcess:
            return False
        return found is not None

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it still runs after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def end_group(self, grace_s: float, home: Path) -> None:
        """End it and the process group that it leads.

        Args:
            grace_s: Seconds between SIGTERM to the leader and SIGKILL to the group; 0 kills at
                once.
            home: The directory in which it was started. If the leader is gone already, members of
                its group that still work there are killed.
        """
        if self.is_alive():
            if grace_s > 0 and self.signal(signal.SIGTERM):
                self.wait(grace_s)
            # While a member is left, the system gives the leader's number to nobody else.
            if self.is_alive() or Process.of(self.pid) is None:
                kill_group(self.pid)
            self.wait(KILLED_S)
            return
        for each in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getpgid(each.pid) == self.pid and each.cwd() == str(home):
                    each.kill()

    def _found(self) -> psutil.Process | None:
        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.created) < CLOCK_STEP_S
            ended = found.status() in {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}
        except psutil.Error:
            return None
        return found if same and not ended else None


def kill_group(leader: int) -> None:
    """Kill a process group that was started here; nothing happens where it is gone."""
    with suppress(ProcessLookupError, PermissionError):  # the latter is macOS's word for a zombie
        os.killpg(leader, signal.SIGKILL)


def guarded(command: Sequence[str], grace_s: float = 0.0) -> list[str]:
    """Return a command line that runs `command` and ends it when this process is gone.

    Start it with `start_new_session=True`: the guard then leads the group that is to be ended.

    Args:
        command: The program and its arguments.
        grace_s: Seconds between SIGTERM to the command and SIGKILL to its group; 0 kills at once.
    """
    interpreter = (sys.executable, "-I", "-S", str(GUARD))
    return [*interpreter, str(os.getpid()), f"{grace_s:g}", *command]


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package in this interpreter.

    `-P` keeps the current directory out of the child's imports: it is the user's, and may hold
    anything.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """Return this process's environment, with the package where the child will find it.

    A package that is run from a source tree is on the parent's path only.
    """
    root = str(Path(__file__).parents[1])
    paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Outliving(subprocess.Popen[bytes]):
    """A module of this package in a process that goes on when this one ends."""

    def __init__(
        self, module: str, *arguments: str, log: Path, lock: int, stdin: int = subprocess.DEVNULL
    ) -> None:
        """Start it in the folder of `log`, which receives its output.

        From its start it holds a lock, whose descriptor is its last argument.

        Raises:
            OSError: The log cannot be opened, or the process cannot be started.
        """
        with log.open("ab") as out:
            super().__init__(
                module_command(module, *arguments, str(lock)),
                cwd=log.parent,
                env=module_environment(),
                stdin=stdin,
                stdout=out,
                stderr=out,
                pass_fds=[lock],
                start_new_session=True,
            )

    def __del__(self) -> None:
        """Stay silent; the standard class warns about a process that still runs."""
