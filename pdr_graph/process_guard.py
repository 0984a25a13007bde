"""Runs a command, and ends it when the process that asked for it is gone.

    python -I -S process_guard.py PARENT_PID GRACE_S COMMAND...

`process.guarded` writes this command line. The guard looks several times a second whether its
parent is still the one that started it, and so notices any kind of death, on Linux and on macOS.
It then sends the command SIGTERM, waits for `GRACE_S` seconds, and kills its own process group,
which holds the command and whatever the command started. SIGTERM to the guard is passed on.
When the command ends, the guard ends with the same status.

If the guard itself is killed, Linux sends the command SIGTERM, or SIGKILL if `GRACE_S` is 0:
prctl(2), PR_SET_PDEATHSIG.

It is run by path, as a script without site-packages: it takes 30 ms and 10 MB.
"""

import os
import signal
import sys
import time
from typing import NoReturn

LOOK_S = 0.25
SIGNAL_AT_PARENTS_DEATH = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def main(parent: int, grace_s: float, command: list[str]) -> None:
    """Run the command to its end, or to the end of the parent."""
    if os.getppid() != parent:
        return  # it died before we began
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        _run(command, guard, signal.SIGTERM if grace_s > 0 else signal.SIGKILL)

    def look(*_: object) -> None:
        if os.getppid() != parent:
            _end(child, grace_s)

    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)
    _, status = os.waitpid(child, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:  # a signal ended it, so the same signal ends us
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(guard, -code)
    os._exit(code)


def _run(command: list[str], guard: int, number: signal.Signals) -> NoReturn:
    """Become the command."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(SIGNAL_AT_PARENTS_DEATH, number)
        if os.getppid() != guard:
            os._exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"error: {command[0]} cannot be run: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


def _end(child: int, grace_s: float) -> NoReturn:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if grace_s > 0:
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)
    os._exit(1)  # never reached: we are of the group


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
