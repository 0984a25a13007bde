"""Runs a command and ends all that it started when the process that asked for it is gone.

    python guard.py PARENT_PID COMMAND...

It leads a process group of its own, so that whoever started it can end the group at once.
"""

import os
import signal
import subprocess
import sys
import time

LOOK_S = 0.5


def main(parent: int, command: list[str]) -> int:
    """Return the command's exit status, unless the parent dies first."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while (status := child.poll()) is None:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        time.sleep(LOOK_S)
    return status


if __name__ == "__main__":
    # An interrupt at the terminal is for the parent, which then ends this group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
