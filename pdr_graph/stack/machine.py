"""What this machine has, asked without torch."""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU that a process started here would see."""

    name: str
    memory_gib: float


def gpus(environment: Mapping[str, str], program: str = "nvidia-smi") -> list[Gpu]:
    """List NVIDIA's GPUs; none where the driver's program is missing or fails.

    Args:
        environment: `CUDA_VISIBLE_DEVICES` in it may hide some or all.
        program: What lists them.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    shown = None if visible is None else [each.strip() for each in visible.split(",")]
    if shown is not None and (not shown[0] or shown[0] == "-1"):
        return []
    if shutil.which(program) is None:
        return []
    query = ["--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        # "0, GPU-6d1e…, NVIDIA H100 80GB HBM3, 81559"
        index, uuid, *name, memory = [part.strip() for part in line.split(",")]
        if memory.isdigit() and (
            shown is None or index in shown or any(each and uuid.startswith(each) for each in shown)
        ):
            found.append(Gpu(", ".join(name), int(memory) / 1024))
    return found


def has_fast_bfloat16(cpuinfo: Path = PROC / "cpuinfo") -> bool:
    """Tell whether the processor multiplies bfloat16; elsewhere it is emulated, 8 times slower."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


def available_gib(meminfo: Path = PROC / "meminfo") -> float | None:
    """Return the memory that new programs may take, None where the machine does not tell."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kib is None else int(kib) * 1024 / GIB
