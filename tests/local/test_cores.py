"""The number of threads that the model server takes."""

import os
from pathlib import Path

import pytest

from pdr_graph.local.cores import MOST_THREADS, usable_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="reads Linux's description of its processors"
)


def machine(root: Path, *, siblings: str | None = None, limit: str = "max 100000\n") -> Path:
    """Describe a machine on which every processor that we may use has the same siblings."""
    for cpu in os.sched_getaffinity(0):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings or f"{cpu}\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(limit)
    return root


def test_every_physical_core_counts_once(tmp_path: Path) -> None:
    """As many threads as cores, up to what a small model can use."""
    cores = len(os.sched_getaffinity(0))
    assert usable_cores(machine(tmp_path)) == min(cores, MOST_THREADS)


def test_hyper_threads_of_one_core_count_once(tmp_path: Path) -> None:
    """They share the units that the work needs."""
    assert usable_cores(machine(tmp_path, siblings="0-127\n")) == 1


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    """A limit of one and a half cores is one thread that never waits for its share."""
    assert usable_cores(machine(tmp_path, limit="150000 100000\n")) == 1


def test_less_than_one_core_is_one_thread(tmp_path: Path) -> None:
    """There is always one."""
    assert usable_cores(machine(tmp_path, limit="20000 100000\n")) == 1


def test_an_unknown_machine_has_its_processors(tmp_path: Path) -> None:
    """Where nothing is described, each processor counts."""
    assert usable_cores(tmp_path) == min(len(os.sched_getaffinity(0)), MOST_THREADS)
