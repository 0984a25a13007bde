"""vLLM's command line, from the strategy and the machine.

Flags as vLLM 0.31 has them. `python -m` rather than the `vllm` script: the script of the builds
for CPUs looks for a distribution by another name than its own.
"""

from dataclasses import dataclass
from pathlib import Path

from pdr_graph.errors import ConfigError
from pdr_graph.stack import machine
from pdr_graph.stack.interpreter import Vllm
from pdr_graph.stack.sizing import Size

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
        if not machine.has_fast_bfloat16():
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
        available = machine.available_gib()
        share = 2 if available is None else int(available / 4)
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(min(MOST_CACHE_GIB, max(1, share)))
    if serving.api_key:
        # Not a flag: everybody on the machine reads the command lines of others.
        variables["VLLM_API_KEY"] = serving.api_key
    return variables
