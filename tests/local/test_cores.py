"""The number of threads that the model server takes."""

import os
from pathlib import Path

import pytest

from pdr_graph.servers.llama import MOST_THREADS, free_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="reads Linux's description of its processors"
)


def machine(
    root: Path, *, siblings: str | None = None, limit: str = "max 100000\n", busy: int = 0
) -> Path:
    """Describe a machine whose processors have the same siblings, and are busy `busy` % so far."""
    (root / "proc").mkdir()
    stat = "cpu 9 9 9 9 9 9 9 9 9 9\n"
    for cpu in os.sched_getaffinity(0):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings or f"{cpu}\n")
        stat += f"cpu{cpu} {busy} 0 0 {100 - busy} 0 0 0 0 0 0\n"
    (root / "proc/stat").write_text(stat + "intr 12 34\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(limit)
    return root


def test_every_physical_core_counts_once(tmp_path: Path) -> None:
    """As many threads as cores, up to what a small model can use."""
    cores = len(os.sched_getaffinity(0))
    assert free_cores(machine(tmp_path), look_s=0) == min(cores, MOST_THREADS)


def test_hyper_threads_of_one_core_count_once(tmp_path: Path) -> None:
    """They share the units that the work needs."""
    assert free_cores(machine(tmp_path, siblings="0-127\n"), look_s=0) == 1


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    """A limit of one and a half cores is one thread that never waits for its share."""
    assert free_cores(machine(tmp_path, limit="150000 100000\n"), look_s=0) == 1


def test_less_than_one_core_is_one_thread(tmp_path: Path) -> None:
    """There is always one."""
    assert free_cores(machine(tmp_path, limit="20000 100000\n"), look_s=0) == 1


def test_an_unknown_machine_has_its_processors(tmp_path: Path) -> None:
    """Where nothing is described, each processor counts."""
    assert free_cores(tmp_path, look_s=0) == min(len(os.sched_getaffinity(0)), MOST_THREADS)


def test_cores_that_others_use_are_left_to_them(tmp_path: Path) -> None:
    """A thread that shares its core stalls all the others."""
    cores = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    assert free_cores(machine(tmp_path, busy=100), look_s=0) == 1
    assert 1 <= free_cores() <= cores
