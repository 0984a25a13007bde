"""How many threads the model server takes.

llama.cpp waits at a barrier after every operation, so a thread without a core of its own stalls
all the others: more threads than cores is far slower than fewer.
"""

import os
from pathlib import Path

MOST_THREADS = 8
"""A model of 135 M parameters gains nothing from more: its operations are too short to divide."""


def usable_cores(root: Path = Path("/")) -> int:
    """Count the physical cores that this process may use, 1 to `MOST_THREADS`.

    Args:
        root: Where `sys/` is found; tests hand in a tree of their own.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if cpus is None:  # macOS has neither affinity nor /sys
        return max(1, min(os.cpu_count() or 1, MOST_THREADS))
    # Two hyper-threads of one core list the same siblings, and share the units that matter here.
    cores = {_siblings(root, cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota(root), MOST_THREADS))


def _siblings(root: Path, cpu: int) -> str:
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(root: Path) -> int:
    """Cores that the container's limit amounts to; `MOST_THREADS` where there is no limit."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return MOST_THREADS if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return MOST_THREADS
