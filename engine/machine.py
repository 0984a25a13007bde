"""What a figure was measured on."""

import os
import platform
from pathlib import Path

from engine.cache import cache_dir
from pdr_graph.errors import ConfigError
from pdr_graph.servers.vllm import find_vllm, output_of


def describe_machine() -> dict[str, str]:
    """Return processor, cores, memory and accelerators in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "gpus": "; ".join(_gpus()) or "none",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def gpu_count() -> int:
    """Return how many NVIDIA GPUs the driver shows."""
    return len(_gpus())


def vllm_version(python: Path) -> str:
    """Return the version of vLLM that an interpreter has, with its package's name; "" for none."""
    try:
        vllm = find_vllm(python, cache_dir())
    except ConfigError:
        return ""
    assert vllm is not None  # a named Python has it, or the call raises
    return f"vllm{'-cpu' if vllm.for_cpu else ''} {vllm.version}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _gpus() -> list[str]:
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return output_of(["nvidia-smi", *query]).splitlines()
