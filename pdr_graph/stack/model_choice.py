"""Which model server this machine gets, and sized how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pdr_graph.errors import ConfigError
from pdr_graph.local.model import LONGEST_CONTEXT
from pdr_graph.local.weights import SMOLLM2
from pdr_graph.stack import vllm as engine
from pdr_graph.stack.address import free_port
from pdr_graph.stack.interpreter import Vllm, config_file, window_of
from pdr_graph.stack.machine import Gpu
from pdr_graph.stack.options import Engine
from pdr_graph.stack.plan import Plan
from pdr_graph.stack.sizing import Size

PORT = 8000
"""vLLM's own default."""
EMBEDDED_SLOTS = 8
INSTALL = "pip install 'pdr-graph[vllm]', or name an environment by --vllm-python"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants of the model server."""

    size: Size
    strategy_given: bool = False
    """Whether the user named the strategy or budgets that `size` comes from."""
    engine: Engine = "auto"
    model: str | None = None
    port: int | None = None
    gpu_memory_utilization: float | None = None
    api_key: str = ""
    further: tuple[str, ...] = ()
    """vLLM flags of the user's own."""
    timeout_s: float = 1800.0
    asked: Mapping[str, str] = field(default_factory=dict)


def model_plan(wanted: Wanted, vllm: Vllm | None, gpus: Sequence[Gpu]) -> Plan:
    """Decide what serves the model, and how.

    Raises:
        ConfigError: what is wanted cannot be served here; the sentence says what is missing.
        LocalError: the port is taken.
    """
    file = _embedded_file(wanted.model)
    is_embedded = wanted.model is None or file is not None or wanted.model == SMOLLM2.name
    if wanted.engine == "embedded" or (wanted.engine == "auto" and is_embedded):
        if not is_embedded:
            raise ConfigError(
                f"the embedded server reads .gguf files, and model {wanted.model!r} is none; "
                "choose --engine vllm"
            )
        return _embedded(wanted, file, vllm, gpus)
    if wanted.model is None:
        raise ConfigError(
            "vLLM needs a model; name a folder, or a name on the Hugging Face hub, by --model / "
            "PDR_MODEL"
        )
    return _served(wanted, wanted.model, _usable(vllm, gpus, wanted.model), gpus)


def _usable(vllm: Vllm | None, gpus: Sequence[Gpu], model: str) -> Vllm:
    if vllm is None:
        raise ConfigError(f"model {model!r} needs vLLM, which no Python here has; {INSTALL}")
    if not gpus and not vllm.for_cpu:
        raise ConfigError(
            f"vLLM {vllm.version} of {vllm.python} is a build for GPUs, and this machine shows "
            "none (nvidia-smi); name a Python with vLLM for CPUs by --vllm-python"
        )
    return vllm


def _served(wanted: Wanted, model: str, vllm: Vllm, gpus: Sequence[Gpu]) -> Plan:
    config = config_file(vllm, model)
    window, notes = _fitted(wanted, None if config is None else window_of(config), model)
    serving = engine.Serving(
        model=model,
        port=free_port(wanted.port, PORT),
        window=window,
        size=wanted.size,
        gpu_memory_utilization=wanted.gpu_memory_utilization,
        api_key=wanted.api_key,
        further=wanted.further,
    )
    if gpus and vllm.for_cpu:
        notes.append(f"vLLM {vllm.version} is a build for CPUs: {gpus[0].name} stays idle")
    elif len(gpus) > 1 and not any("parallel" in flag for flag in wanted.further):
        notes.append(
            f"{len(gpus)} GPUs are here and one is used; for all: -- --tensor-parallel-size "
            f"{len(gpus)}"
        )
    return Plan(
        part="model",
        kind="vllm",
        url=f"http://127.0.0.1:{serving.port}/v1",
        command=engine.command(vllm, serving),
        environment=engine.environment(vllm, serving),
        model=model,
        asked=wanted.asked,
        timeout_s=wanted.timeout_s,
        notes=tuple(notes),
    )


def _embedded(wanted: Wanted, file: Path | None, vllm: Vllm | None, gpus: Sequence[Gpu]) -> Plan:
    if wanted.further or wanted.gpu_memory_utilization is not None:
        what = wanted.further[0] if wanted.further else "--gpu-memory-utilization"
        raise ConfigError(f"{what} is vLLM's, and the embedded model would run; name a --model")
    model = wanted.model or SMOLLM2.name
    window, notes = _fitted(wanted, None if file else LONGEST_CONTEXT, model)
    if wanted.model is None and wanted.engine == "auto":
        notes = [*_way_to_vllm(vllm, gpus), *notes]
    settings: dict[str, int | str] = {
        "slots": EMBEDDED_SLOTS,
        "context_per_slot": window or wanted.size.needed,
        "port": free_port(wanted.port, PORT),
    }
    if file is not None:
        settings["model_file"] = str(file)
    return Plan(
        part="model",
        kind="embedded model",
        url=f"http://127.0.0.1:{settings['port']}/v1",
        model=model,
        settings=settings,
        asked=wanted.asked,
        timeout_s=wanted.timeout_s,
        notes=tuple(notes),
    )


def _way_to_vllm(vllm: Vllm | None, gpus: Sequence[Gpu]) -> list[str]:
    if vllm is not None:
        where = f"vLLM {vllm.version} is here"
        return [f"{where}, but no model is named (--model / PDR_MODEL): the embedded one runs"]
    if gpus:
        return [f"{gpus[0].name} is here, but no vLLM: {INSTALL}, then name a --model"]
    return []


def _fitted(wanted: Wanted, window: int | None, model: str) -> tuple[int | None, list[str]]:
    """Return the window to serve, None if the model's is unknown, and what to tell the user."""
    size = wanted.size
    if window is None:
        return None, []
    if size.needed > window:
        told = f"calls of this strategy need {size.needed} tokens and {model} reads {window}"
        remedy = "lower --max-tokens, --kappa or --problem-tokens"
        if wanted.strategy_given:
            raise ConfigError(f"{told}; {remedy}")
        return window, [f"{told}: {remedy} of your runs"]
    if size.wished > window:
        return window, [
            f"a prompt that reads a whole round can need {size.wished} tokens and {model} reads "
            f"{window}: long drafts will be cut to fit"
        ]
    return size.wished, []


def _embedded_file(model: str | None) -> Path | None:
    if model is None or Path(model).suffix != ".gguf":
        return None
    file = Path(model).expanduser()
    if not file.is_file():
        raise ConfigError(f"model file {model!r} does not exist")
    return file.resolve()
