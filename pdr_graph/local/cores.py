"""How many threads the model server takes.

llama.cpp waits for all its threads after every operation, so one that has to share its core
stalls the others: more threads than free cores is far slower than fewer.
"""

import os
import time
from pathlib import Path

MOST_THREADS = 8
"""A model of 135 M parameters gains nothing from more: its operations are too short to divide."""

LOOK_S = 0.1
"""How long we watch what others do."""


def free_cores(root: Path = Path("/"), look_s: float = LOOK_S) -> int:
    """Count the physical cores that this process may use and nobody else does, at least 1.

    It blocks for `look_s` seconds. Where the machine does not say, every core counts as free.

    Args:
        root: Where `proc/` and `sys/` are; tests hand in a tree of their own.
        look_s: 0 for a single look at what the machine did since it started.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS, which has no /proc and no /sys either
        return max(1, min(os.cpu_count() or 1, MOST_THREADS))
    cpus = os.sched_getaffinity(0)
    # Two hyper-threads of one core list the same siblings, and share the units that matter here.
    cores = len({_siblings(root, cpu) for cpu in cpus})
    idle = round(cores * _idle_share(root, cpus, look_s))
    return max(1, min(idle, _quota(root), MOST_THREADS))


def _siblings(root: Path, cpu: int) -> str:
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _idle_share(root: Path, cpus: set[int], look_s: float) -> float:
    """Share of the processors' time that nobody used, 0 to 1."""
    before = _times(root, cpus) if look_s else (0, 0)
    time.sleep(look_s)
    idle, total = (now - then for now, then in zip(_times(root, cpus), before, strict=True))
    return idle / total if total else 1.0


def _times(root: Path, cpus: set[int]) -> tuple[int, int]:
    """Return idle and total time of some processors, in ticks since the machine started."""
    try:
        lines = [line.split() for line in (root / "proc/stat").read_text().splitlines()]
    except OSError:
        return 0, 0
    names = {f"cpu{cpu}" for cpu in cpus}
    # "cpu0 user nice system idle iowait irq …"
    ticks = [[int(word) for word in words[1:]] for words in lines if words[0] in names]
    return sum(each[3] + each[4] for each in ticks), sum(sum(each[:8]) for each in ticks)


def _quota(root: Path) -> int:
    """Cores that the container's limit amounts to; `MOST_THREADS` where there is no limit."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return MOST_THREADS if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return MOST_THREADS
