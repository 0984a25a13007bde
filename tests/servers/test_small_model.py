"""Threads and budgets of the embedded model."""

import os
from pathlib import Path

import pytest

from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.config import PRESETS
from pdr_graph.connect import EMBEDDED_WINDOW
from pdr_graph.servers.llama import MOST_THREADS, announcement, free_cores, small_config

reads_proc = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="reads Linux's description of its processors"
)


def machine(root: Path, *, siblings: str | None = None, limit: str = "max 100000\n") -> Path:
    """Describe a machine whose processors have the same siblings."""
    for cpu in os.sched_getaffinity(0):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings or f"{cpu}\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.max").write_text(limit)
    return root


def idle() -> list[float]:
    """No processor is busy."""
    return [0.0] * (max(os.sched_getaffinity(0)) + 1)


@reads_proc
def test_every_physical_core_counts_once(tmp_path: Path) -> None:
    """As many threads as cores, up to what a small model can use."""
    cores = len(os.sched_getaffinity(0))
    assert free_cores(machine(tmp_path), idle) == min(cores, MOST_THREADS)


@reads_proc
def test_hyper_threads_of_one_core_count_once(tmp_path: Path) -> None:
    """They share the units that the work needs."""
    assert free_cores(machine(tmp_path, siblings="0-127\n"), idle) == 1


@reads_proc
def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    """A limit of one and a half cores is one thread that never waits for its share."""
    assert free_cores(machine(tmp_path, limit="150000 100000\n"), idle) == 1


@reads_proc
def test_less_than_one_core_is_one_thread(tmp_path: Path) -> None:
    """There is always one."""
    assert free_cores(machine(tmp_path, limit="20000 100000\n"), idle) == 1


@reads_proc
def test_an_unknown_machine_has_its_processors(tmp_path: Path) -> None:
    """Where nothing is described, each processor counts."""
    assert free_cores(tmp_path, list) == min(len(os.sched_getaffinity(0)), MOST_THREADS)


@reads_proc
def test_cores_that_others_use_are_left_to_them(tmp_path: Path) -> None:
    """A thread that shares its core stalls all the others."""
    cores = min(len(os.sched_getaffinity(0)), MOST_THREADS)
    assert free_cores(machine(tmp_path), lambda: [1.0 for _ in idle()]) == 1
    assert 1 <= free_cores() <= cores


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_scaled_to_the_window(name):
    """A call of every preset leaves half of the window to the problem."""
    config = small_config(name, {})
    assert config.preset == name
    assert sum(config.widths) <= 16
    assert max(config.widths, default=1) <= 8
    assert config.kappa + config.max_tokens + TEMPLATE_TOKENS <= EMBEDDED_WINDOW / 2


def test_what_was_given_stays():
    """Only what the user did not set is small."""
    config = small_config("pdr", {"kappa": "500", "widths": ("3",)})
    assert (config.kappa, config.widths, config.max_tokens) == (500, (3,), 256)


def test_it_is_said():
    """The announcement names the option that ends it, and the budgets."""
    said = announcement(small_config("pdr", {}))
    assert "--base-url / PDR_BASE_URL" in said
    assert "widths 4,2, kappa 384, max_tokens 256, solution_tokens 192" in said
