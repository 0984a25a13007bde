"""Which servers this machine gets, of what size, and at which addresses."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pdr_graph.errors import ConfigError, LocalError, install_command
from pdr_graph.servers.llama import EMBEDDED_SLOTS, LONGEST_CONTEXT, gguf_file
from pdr_graph.servers.options import Store, UpOptions
from pdr_graph.servers.record import ServerPlan
from pdr_graph.servers.valkey import (
    PROGRAMS,
    TIMEOUT_S,
    find_redis,
    note_address,
    noted_address,
    noted_password,
    own_password,
    redis_folder,
    socket_of,
    store_server,
)
from pdr_graph.servers.vllm import (
    Serving,
    Size,
    Vllm,
    config_file,
    vllm_server,
    window_of,
)
from pdr_graph.servers.weights import SMOLLM2

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def free_port(wanted: int | None, preferred: int | None = None) -> int:
    """Choose a port of the loopback interface.

    Args:
        wanted: The port that the user demands; None if any will do.
        preferred: The port to take in that case, if it is free.

    Raises:
        LocalError: `wanted` is taken.
    """
    if wanted is not None:
        if not _can_bind(wanted):
            raise LocalError(f"port {wanted} is taken by another program; choose a free one")
        return wanted
    if preferred is not None and _can_bind(preferred):
        return preferred
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unanswered_port(url: str, default: int, own: str = "") -> int | None:
    """Return the port of a URL on this machine at which nobody listens; None for other URLs.

    A URL with a password, other than our `own`, belongs to a server that somebody has set up.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default
    except ValueError:
        return None
    if parts.scheme not in {"http", "redis"} or host not in LOOPBACK:
        return None
    if parts.password and parts.password != own:
        return None
    try:
        with socket.create_connection((host, port), timeout=5):
            return None
    except ConnectionRefusedError:
        return port
    except OSError:
        return None


def is_socket_of(url: str, folder: Path) -> bool:
    """Tell whether a URL is that of the store that keeps its data in a folder."""
    parts, address = urlsplit(url), noted_address(folder)
    return parts.scheme == "unix" and address != "" and unquote(parts.path) == address


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        # Servers set this too: a port counts as free as soon as its owner has gone.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


PORT = 8000
"""vLLM's own default."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model server that the user wants."""

    options: UpOptions
    size: Size
    strategy_given: bool = False
    """Whether the user named the strategy or budgets that `size` comes from."""
    model: str | None = None
    api_key: str = ""
    further: tuple[str, ...] = ()
    """vLLM flags of the user's own."""
    asked: Mapping[str, str] = field(default_factory=dict)
    dry: bool = False
    """Whether the plan is only shown, so that nothing need be installed."""


def model_plan(wanted: Wanted, vllm: Vllm | None, gpus: Sequence[str]) -> ServerPlan:
    """Choose what serves the model.

    Raises:
        ConfigError: The model cannot be served here; the sentence says what is missing.
        LocalError: The port is taken.
    """
    engine, file = wanted.options.engine, gguf_file(wanted.model)
    is_embedded = wanted.model is None or file is not None or wanted.model == SMOLLM2.name
    if engine == "embedded" or (engine == "auto" and is_embedded):
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
    return _served(wanted, wanted.model, vllm, gpus)


def _served(wanted: Wanted, model: str, vllm: Vllm | None, gpus: Sequence[str]) -> ServerPlan:
    folder, notes = Path(model).expanduser(), list[str]()
    looks_like_one = model.startswith((".", "~", "/")) or model.endswith("/")
    if looks_like_one and not folder.is_dir():
        raise ConfigError(
            f"model folder {model!r} does not exist; name one that does, or a name on the Hugging "
            "Face hub, by --model / PDR_MODEL"
        )
    if vllm is None and wanted.dry:
        vllm = Vllm("python", "", for_cpu=not gpus)
        notes.append(
            "vLLM is not installed here, and the command below needs it: " + _way_to_install()
        )
    if vllm is None:
        raise ConfigError(
            f"model {model!r} needs vLLM, which no Python here has; {_way_to_install()}"
        )
    if not gpus and not vllm.for_cpu:
        raise ConfigError(
            f"vLLM {vllm.version} of {vllm.python} is a build for GPUs, and this machine shows "
            "none (nvidia-smi); name a Python with vLLM for CPUs by --vllm-python"
        )
    config = config_file(vllm, model) if vllm.version or folder.is_dir() else None
    window, more = _fitted(wanted, None if config is None else window_of(config), model)
    notes += more
    serving = Serving(
        model=model,
        port=free_port(wanted.options.port, PORT),
        window=window,
        calls=wanted.size.calls,
        gpu_memory_utilization=wanted.options.gpu_memory_utilization,
        api_key=wanted.api_key,
        further=wanted.further,
    )
    plan = vllm_server(vllm, serving, wanted.options.start_timeout_s)
    if gpus and vllm.for_cpu:
        notes.append(f"vLLM {vllm.version} is a build for CPUs: {gpus[0]} stays idle")
    elif len(gpus) > 1 and not any("parallel" in flag for flag in wanted.further):
        notes.append(
            f"{len(gpus)} GPUs are here and one is used; for all: -- --tensor-parallel-size "
            f"{len(gpus)}"
        )
    return replace(plan, asked=wanted.asked, notes=tuple(notes))


def _embedded(
    wanted: Wanted, file: Path | None, vllm: Vllm | None, gpus: Sequence[str]
) -> ServerPlan:
    if wanted.further or wanted.options.gpu_memory_utilization is not None:
        what = wanted.further[0] if wanted.further else "--gpu-memory-utilization"
        raise ConfigError(f"{what} is vLLM's, and the embedded model would run; name a --model")
    model = wanted.model or SMOLLM2.name
    window, notes = _fitted(wanted, None if file else LONGEST_CONTEXT, model)
    if wanted.model is None and wanted.options.engine == "auto":
        notes = [*_way_to_vllm(vllm, gpus), *notes]
    settings: dict[str, int | str] = {
        "slots": EMBEDDED_SLOTS,
        "context_per_slot": window or wanted.size.needed,
        "port": free_port(wanted.options.port, PORT),
    }
    if file is not None:
        settings["model_file"] = str(file)
    return ServerPlan(
        part="model",
        kind="embedded model",
        url=f"http://127.0.0.1:{settings['port']}/v1",
        model=model,
        settings=settings,
        asked=wanted.asked,
        timeout_s=wanted.options.start_timeout_s,
        notes=tuple(notes),
    )


def _way_to_install() -> str:
    return f"name an environment by --vllm-python, or install it: {install_command('vllm')}"


def _way_to_vllm(vllm: Vllm | None, gpus: Sequence[str]) -> list[str]:
    if vllm is not None:
        where = f"vLLM {vllm.version} is here"
        return [f"{where}, but no model is named (--model / PDR_MODEL): the embedded one runs"]
    if gpus:
        where = f"{gpus[0]} is here, but no vLLM"
        return [f"{where}; to use it, name a --model, and {_way_to_install()}"]
    return []


def _fitted(wanted: Wanted, window: int | None, model: str) -> tuple[int | None, list[str]]:
    """Return the window to serve, None if that of the model is unknown, and notes for the user."""
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


def store_plan(
    wanted: Store, data_dir: Path, *, port: int | None, can_embed: bool, dry: bool
) -> ServerPlan:
    """Choose the store of the runs.

    By default it is the store that has data in the data directory, and Redis if both have. If
    neither has, it is the Redis of this machine, else the embedded Valkey.

    Args:
        wanted: The user's choice; `auto` is the default.
        data_dir: Keeps the data of both.
        port: Of a Redis; without one it listens on a Unix socket.
        can_embed: Whether the embedded Valkey is installed.
        dry: Whether to leave the data directory as it is.

    Raises:
        ConfigError: The wanted store is not installed.
        LocalError: The port is taken, or the folder cannot be made.
    """
    program, folder = find_redis(), redis_folder(data_dir)
    if wanted == "auto":
        used = (data_dir / "valkey").exists() and not folder.exists()
        wanted = "embedded" if port is None and can_embed and (used or not program) else "redis"
    if wanted == "embedded":
        if port is not None:
            raise ConfigError(f"--redis-port {port} is for Redis; the embedded store has no port")
        return ServerPlan(part="store", kind="embedded valkey", timeout_s=TIMEOUT_S)
    if program is None and dry:
        program = PROGRAMS[0]  # what would run, once it is installed
    if program is None:
        raise ConfigError(
            "no redis-server is on the path; install Redis, or the embedded store: "
            + install_command("local")
        )
    where = socket_of(folder) if port is None else free_port(port)
    password = "" if port is None else noted_password(folder)
    if not dry:
        note_address(folder, where if isinstance(where, str) else "")
        password = "" if port is None else own_password(folder)
    return store_server("redis", program, folder, where, password)
