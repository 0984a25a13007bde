"""A process by its number and its start, so that a number in use again is nobody we know."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05
PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this boot of this machine."""

    pid: int
    started: str
    """When, in words that are only compared; no two processes of one number share them."""

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """Look a running process up; None if there is none, or only its exit status is left."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    def is_alive(self) -> bool:
        """Tell whether it still runs."""
        return _started(self.pid) == self.started

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal; False if it is gone, whoever has its number now."""
        try:
            if not hasattr(os, "pidfd_open"):  # macOS: the number might be reused in between
                if self.is_alive():
                    os.kill(self.pid, number)
                    return True
                return False
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def end_group(self, grace_s: float, home: Path | None = None) -> None:
        """End it and the process group that it leads, by force after `grace_s` seconds.

        Args:
            grace_s: Time for an orderly end.
            home: The directory in which it was started. Where it is gone already, those of its
                group that still work there are ended; None leaves them.
        """
        if self.signal(signal.SIGTERM):
            self.wait(grace_s)
            with contextlib.suppress(ProcessLookupError):
                # Its number cannot be given to another while anything of its group is left.
                if Process.of(self.pid) in {None, self}:
                    os.killpg(self.pid, signal.SIGKILL)
            self.wait(grace_s)
        elif home is not None and not self.is_alive():
            for member in _members(self.pid, home):
                member.signal(signal.SIGKILL)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False if it still runs after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self.is_alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True


def _members(group: int, home: Path) -> list[Process]:
    """List the processes of a group that work in a directory; none where there is no /proc."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ours = int(fields[2]) == group and (folder / "cwd").readlink() == home
        except OSError:
            continue
        member = Process.of(int(folder.name)) if ours else None
        if member is not None:
            found.append(member)
    return found


def _started(pid: int) -> str | None:
    if (PROC / "self/stat").exists():
        return _started_in_proc(pid)
    done = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = done.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None


def _started_in_proc(pid: int) -> str | None:
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # "1234 (name, which may hold anything) S …": the state, and 19 fields later the start.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else f"{boot} {fields[19]}"
