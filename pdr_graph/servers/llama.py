"""A language model with no set-up: SmolLM2-135M-Instruct in llama.cpp, in a process of its own.

It is a demonstration model, small enough for any machine and often wrong. What its server does
and does not do, as seen with `xllamacpp` 2026.10:

- A streamed call that the client drops frees its slot at once. A plain call frees its slot only
  after a second in which the server delivers nothing else. So cancel streamed calls only.
- `n` works up to the number of slots, but `usage` then counts one choice only.
- A seed gives the same text alone and in a batch. Any model name is accepted.
- A prompt longer than a slot's context is refused with 400, `exceed_context_size_error`; an
  answer that reaches its end stops there, with `finish_reason: length`.
- `/v1/embeddings` gives the last token's hidden state beside chat. It takes text, not messages;
  `/apply-template` makes text of messages.

`small_config` scales presets down to this model: they are made for a GPU, and would take an hour
here.
"""

import asyncio
import importlib.util
import json
import os
import threading
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import MappingProxyType
from typing import BinaryIO

import psutil

from pdr_graph.config import PDRConfig, preset, with_defaults
from pdr_graph.errors import ConfigError, LocalError, install_command
from pdr_graph.process import guarded, kill_group, module_command, module_environment
from pdr_graph.servers.data_dir import (
    Announce,
    fresh_log,
    key_file,
    last_lines,
    own_folder,
    own_key,
)
from pdr_graph.servers.record import Shelf
from pdr_graph.servers.server import answers
from pdr_graph.servers.weights import (
    ANNOUNCE_EVERY_S,
    SMOLLM2,
    Weights,
    fetch_weights,
    find_weights,
)
from pdr_graph.settings import NO_KEY, Settings

LONGEST_CONTEXT = 8192
"""Model tokens that SmolLM2 was trained to read."""
MOST_THREADS = 8
"""Most threads: the operations of a model of 135 M parameters are too short for more."""
LOOK_S = 0.1
"""Seconds for a look at how busy the processors are; also between looks at a server."""
EMBEDDED_SLOTS = 8
"""Calls that the embedded model works on at once; further ones wait."""
BUDGETS: Mapping[str, object] = MappingProxyType(
    {"max_tokens": 256, "solution_tokens": 192, "kappa": 384}
)
"""In model tokens."""
ROUNDS = 2
SHRINK = 4
"""Widths are divided by it, and only the first rounds stay: 16, 8, 4 become 4, 2."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a model that is served in OpenAI's protocol."""

    base_url: str
    """Ends in /v1."""
    model: str
    """The name under which it is served."""
    api_key: str = NO_KEY
    """What it asks for."""


@asynccontextmanager
async def embedded_model(
    data_dir: Path,
    *,
    slots: int = EMBEDDED_SLOTS,
    context_per_slot: int = 4096,
    port: int = 0,
    model_file: Path | None = None,
    served_name: str | None = None,
    announce: Announce | None = None,
    startup_timeout_s: float = 120.0,
) -> AsyncIterator[Endpoint]:
    """Serve the embedded model on the loopback interface for as long as the context lasts.

    The server ends with this process, however this process ends. It answers those who have its key,
    which is in the data directory, for its owner alone.

    Args:
        data_dir: Keeps the weights and the server's log.
        slots: Calls that are answered at the same time; further ones wait.
        context_per_slot: Prompt and answer of one call, in model tokens. A token takes about
            23 KB of memory, so 8 slots of 4096 take 0.8 GB.
        port: Of the server; 0 takes a free one.
        model_file: A GGUF file to serve in place of SmolLM2.
        served_name: The model's name there; None is the file's name without its ending.
        announce: Told what happens, a line at a time.
        startup_timeout_s: Longest start, without the time to fetch the weights.

    Raises:
        ConfigError: The slots or the context are out of bounds.
        LocalError: The weights are not available, or the server does not start.
    """
    say = announce or (lambda line: None)
    if slots < 1:
        raise ConfigError(f"the embedded model needs at least 1 slot, not {slots}")
    if context_per_slot < 1 or (model_file is None and context_per_slot > LONGEST_CONTEXT):
        raise ConfigError(
            f"the embedded model reads 1 to {LONGEST_CONTEXT} tokens, not {context_per_slot}"
        )
    _check_installed()
    weights = model_file or await ready_weights(data_dir, say)
    name = served_name or (model_file.stem if model_file else SMOLLM2.name)
    asked = {
        "weights": str(weights.absolute()),
        "name": name,
        "slots": slots,
        "context_per_slot": context_per_slot,
        # In threads, since some servers check that nothing blocks their event loop.
        "threads": await asyncio.to_thread(free_cores),
        "port": port,
        # The key's file is named, since other users can see the command line.
        "key_file": str(key_file(data_dir).absolute()),
    }
    key = await asyncio.to_thread(own_key, data_dir)
    log, out = await asyncio.to_thread(_open_log, data_dir)
    with out:
        process = await asyncio.create_subprocess_exec(
            *guarded(module_command("pdr_graph.servers.model_server", json.dumps(asked))),
            env=module_environment(),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=out,
            start_new_session=True,
        )
    try:
        address = await _started(process, log, startup_timeout_s, say)
        say(
            f"model: {name} in llama.cpp at {address}"
            + ("" if model_file else ", a demonstration model that is often wrong")
        )
        yield Endpoint(base_url=f"{address}/v1", model=name, api_key=key)
    finally:
        if process.returncode is None:
            kill_group(process.pid)  # it has nothing to save; an orderly end would wait for a batch
        await process.wait()


def gguf_file(model: str | None) -> Path | None:
    """Return the .gguf file that a model's name is, None if it is none.

    Raises:
        ConfigError: There is no such file.
    """
    if model is None or Path(model).suffix != ".gguf":
        return None
    file = Path(model).expanduser()
    if not file.is_file():
        raise ConfigError(f"model file {model!r} does not exist")
    return file.resolve()


def _check_installed() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalError(f"the embedded model needs xllamacpp: {install_command('local')}")


async def ready_weights(data_dir: Path, say: Announce, *, weights: Weights = SMOLLM2) -> Path:
    """Return the weights of a model, fetched on first use.

    Raises:
        LocalError: They are not available, or nothing here could serve them.
    """
    if found := await asyncio.to_thread(find_weights, data_dir, weights=weights):
        return found
    _check_installed()  # before hundreds of megabytes are fetched for nothing
    stop = threading.Event()
    try:
        return await asyncio.to_thread(fetch_weights, data_dir, say, weights=weights, stop=stop)
    finally:
        stop.set()  # a cancelled task leaves its thread behind: end the download too


def _open_log(data_dir: Path) -> tuple[Path, BinaryIO]:
    log = fresh_log(own_folder(data_dir) / "model-server.log")
    try:
        return log, os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    except OSError as error:
        raise LocalError(f"the log {str(log)!r} cannot be written: {error.strerror}") from error


async def _started(process: Process, log: Path, timeout_s: float, say: Announce) -> str:
    """Wait until the server answers, and return its address, `http://127.0.0.1:PORT`."""
    try:
        async with asyncio.timeout(timeout_s):
            address = await _address(process, log, say)
            while not await asyncio.to_thread(answers, address):
                if process.returncode is not None:
                    raise _ended(process.returncode, log)
                await asyncio.sleep(LOOK_S)
            return address
    except TimeoutError:
        raise LocalError(
            f"the embedded model was not up after {timeout_s:g} s; its log is {str(log)!r}"
        ) from None


async def _address(process: Process, log: Path, say: Announce) -> str:
    assert process.stdout is not None  # we asked for a pipe
    reading = asyncio.ensure_future(process.stdout.readline())
    try:
        while not (await asyncio.wait({reading}, timeout=ANNOUNCE_EVERY_S))[0]:
            say("the embedded model is loading")
    finally:
        reading.cancel()
    if not (line := await reading):
        raise _ended(await process.wait(), log)
    answer: dict[str, str] = json.loads(line)
    if "error" in answer:
        raise LocalError(
            f"the embedded model cannot be loaded: {answer['error']}; its log is {str(log)!r}"
        )
    return answer["address"]


def _ended(status: int, log: Path) -> LocalError:
    said = (last_lines(log) or ["it said nothing"])[-1]
    return LocalError(
        f"the embedded model ended at its start with status {status} ({said}); "
        f"its log is {str(log)!r}"
    )


def busy_shares() -> list[float]:
    """Measure for `LOOK_S` seconds how busy each processor is, 0 to 1; empty if it is not known."""
    try:
        return [percent / 100 for percent in psutil.cpu_percent(LOOK_S, percpu=True)]
    except OSError:
        return []


def free_cores(root: Path = Path("/"), busy: Callable[[], Sequence[float]] = busy_shares) -> int:
    """Count the physical cores that this process may use and nobody else uses, at least 1.

    llama.cpp waits for all its threads after every operation, so a thread that shares its core
    stalls the others: more threads than free cores are far slower than fewer.

    Args:
        root: The parent of `sys/`; tests hand in a tree of their own.
        busy: Says how busy each processor is, 0 to 1; one that it leaves out counts as free.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # macOS has neither that nor /sys
    cpus = os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))
    # Two hyper-threads of one core list the same siblings, and share the units that matter here.
    cores = len({_siblings(root, cpu) for cpu in cpus})
    shares = [share for cpu, share in enumerate(busy()) if cpu in cpus]
    free = round(cores * (1 - fmean(shares or [0.0])))
    return max(1, min(free, _quota(root), MOST_THREADS))


def _siblings(root: Path, cpu: int) -> str:
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota(root: Path) -> int:
    """Return the cores that the container may use; `MOST_THREADS` where there is no limit."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return MOST_THREADS if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return MOST_THREADS


def small_config(name: str, given: Mapping[str, object]) -> PDRConfig:
    """Return a preset scaled down to the embedded model; the values in `given` are kept.

    The small budgets count as set by nobody: they shrink further for a long problem.
    """
    full = preset(name)
    scaled: dict[str, object] = {}
    if max(full.widths, default=0) > SHRINK:
        shrunk = tuple(max(1, width // SHRINK) for width in full.widths[:ROUNDS])
        scaled = {"widths": shrunk, "k": min(full.k, 2)}
    config = preset(name, **{**scaled, **given})
    small = {name: value for name, value in BUDGETS.items() if name not in given}
    return with_defaults(config, **small)


def is_small(settings: Settings) -> bool:
    """Tell whether the embedded model is to run: here, or in the server that `up` has started."""
    url = settings.base_url
    return url is None or Shelf(settings.data_dir).is_embedded(url)


def announcement(config: PDRConfig, base_url: str | None = None) -> str:
    """Return the sentence that tells the user why the run is small, and how small."""
    widths = ",".join(map(str, config.widths)) or "none"
    why = (
        "no endpoint is configured (--base-url / PDR_BASE_URL): a small model runs here"
        if base_url is None
        else f"the embedded model answers at {base_url}"
    )
    return (
        f"{why}; budgets where you set none: widths {widths}, kappa {config.kappa}, "
        f"max_tokens {config.max_tokens}, solution_tokens {config.solution_tokens}"
    )
