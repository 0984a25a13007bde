"""A language model with no set-up: SmolLM2-135M-Instruct in llama.cpp, in a process of its own.

It is a demonstration model, small enough for any machine and often wrong. What its server does
and does not do, as seen with `xllamacpp` 2026.10:

- A streamed call that the client drops frees its slot at once. A plain one does so within a
  second, but only in a second in which the server delivers nothing else: cancel streamed calls.
- `n` works up to the number of slots, but `usage` then counts one choice only.
- A seed gives the same text alone and in a batch. Any model name is accepted.
- A prompt longer than a slot's context is refused with 400, `exceed_context_size_error`; an
  answer that reaches its end stops there, with `finish_reason: length`.

How many threads the model server takes.

llama.cpp waits for all its threads after every operation, so one that has to share its core
stalls the others: more threads than free cores is far slower than fewer.

Budgets for a small model that runs here, for all that the user did not ask for.

It has a small window and runs on a CPU: a preset made for a GPU would take it an hour.
"""

import asyncio
import http.client
import importlib.util
import json
import os
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError, LocalError
from pdr_graph.servers import process as child
from pdr_graph.servers.data_dir import Announce, fresh_log, last_line, own_folder
from pdr_graph.servers.weights import SMOLLM2, fetch_weights, find_weights
from pdr_graph.strategies import preset

MOST_THREADS = 8
"""A model of 135 M parameters gains nothing from more: its operations are too short to divide."""

LOOK_S = 0.1
"""How long we watch what others do."""


def free_cores(root: Path = Path("/"), look_s: float = LOOK_S) -> int:
    """Count the physical cores that this process may use and nobody else does, at least 1.

    It blocks for `look_s` seconds. Where the machine does not say, every core counts as free.

    Args:
        root: Where `proc/` and `sys/` are; tests hand in a tree of their own.
        look_s: 0 for a single look at what the machine did since it started.
    """
    if not hasattr(os, "sched_getaffinity"):  # macOS, which has no /proc and no /sys either
        return max(1, min(os.cpu_count() or 1, MOST_THREADS))
    cpus = os.sched_getaffinity(0)
    # Two hyper-threads of one core list the same siblings, and share the units that matter here.
    cores = len({_siblings(root, cpu) for cpu in cpus})
    idle = round(cores * _idle_share(root, cpus, look_s))
    return max(1, min(idle, _quota(root), MOST_THREADS))


def _siblings(root: Path, cpu: int) -> str:
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _idle_share(root: Path, cpus: set[int], look_s: float) -> float:
    """Share of the processors' time that nobody used, 0 to 1."""
    before = _times(root, cpus) if look_s else (0, 0)
    time.sleep(look_s)
    idle, total = (now - then for now, then in zip(_times(root, cpus), before, strict=True))
    return idle / total if total else 1.0


def _times(root: Path, cpus: set[int]) -> tuple[int, int]:
    """Return idle and total time of some processors, in ticks since the machine started."""
    try:
        lines = [line.split() for line in (root / "proc/stat").read_text().splitlines()]
    except OSError:
        return 0, 0
    names = {f"cpu{cpu}" for cpu in cpus}
    # "cpu0 user nice system idle iowait irq …"
    ticks = [[int(word) for word in words[1:]] for words in lines if words[0] in names]
    return sum(each[3] + each[4] for each in ticks), sum(sum(each[:8]) for each in ticks)


def _quota(root: Path) -> int:
    """Cores that the container's limit amounts to; `MOST_THREADS` where there is no limit."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return MOST_THREADS if quota == "max" else int(quota) // int(period)
    except (OSError, ValueError):
        return MOST_THREADS


LONGEST_CONTEXT = 8192
"""Model tokens that SmolLM2 was trained to read."""

ANNOUNCE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model answers, in OpenAI's protocol."""

    base_url: str
    """Ends in /v1."""
    model: str
    """The name that it goes by there."""


@asynccontextmanager
async def embedded_model(
    data_dir: Path,
    *,
    slots: int = 8,
    context_per_slot: int = 4096,
    threads: int | None = None,
    port: int = 0,
    model_file: Path | None = None,
    served_name: str | None = None,
    announce: Announce | None = None,
    startup_timeout_s: float = 120.0,
) -> AsyncIterator[Endpoint]:
    """Serve the embedded model on the loopback interface for as long as the context lasts.

    The server ends with this process, however this process ends.

    Args:
        data_dir: Keeps the weights and the server's log.
        slots: Calls that are answered at the same time; more of them wait.
        context_per_slot: Prompt and answer of one call, in model tokens. A token takes about
            23 KB of memory, so 8 slots of 4096 take 0.8 GB.
        threads: None is one for each physical core that is free when it starts.
        port: Where it listens; 0 takes a free one.
        model_file: A GGUF file to serve in place of SmolLM2.
        served_name: What the model is called there; None is the file's name without its ending.
        announce: Told what happens, a line at a time.
        startup_timeout_s: For loading the weights; fetching them has no limit.

    Raises:
        ConfigError: The slots or the context are out of bounds.
        LocalError: The weights are not to be had, or the server does not start.
    """
    say = announce or (lambda line: None)
    if slots < 1:
        raise ConfigError(f"the embedded model needs at least 1 slot, not {slots}")
    if context_per_slot < 1 or (model_file is None and context_per_slot > LONGEST_CONTEXT):
        raise ConfigError(
            f"the embedded model reads 1 to {LONGEST_CONTEXT} tokens, not {context_per_slot}"
        )
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalError("the embedded model needs xllamacpp: pip install 'pdr-graph[local]'")
    weights = model_file or await _weights(data_dir, say)
    name = served_name or (model_file.stem if model_file else SMOLLM2.name)
    # In threads: a server that opens a graph may not be blocked by a disk, and some check it.
    log = await asyncio.to_thread(_log_in, data_dir)
    arguments = [
        *("--weights", str(weights.absolute()), "--name", name),
        *("--slots", str(slots), "--context-per-slot", str(context_per_slot)),
        *(
            "--threads",
            str(threads or await asyncio.to_thread(free_cores)),
            "--parent",
            str(os.getpid()),
        ),
        *("--port", str(port)),
    ]
    process = await _spawn(arguments, log)
    try:
        address = await _started(process, log, startup_timeout_s, say)
        say(
            f"model: {name} in llama.cpp at {address}"
            + ("" if model_file else ", a demonstration model that is often wrong")
        )
        yield Endpoint(base_url=f"{address}/v1", model=name)
    finally:
        if process.returncode is None:
            process.kill()  # it has nothing to save, and an orderly end would wait for a batch
        await process.wait()


async def _weights(data_dir: Path, say: Announce) -> Path:
    if found := await asyncio.to_thread(find_weights, data_dir):
        return found
    stop = threading.Event()
    try:
        return await asyncio.to_thread(fetch_weights, data_dir, say, stop=stop)
    finally:
        stop.set()  # a cancelled task leaves its thread behind; this ends the download too


def _log_in(data_dir: Path) -> Path:
    return fresh_log(own_folder(data_dir) / "model-server.log")


def _open(log: Path) -> int:
    try:
        return os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise LocalError(f"the log {log} cannot be written: {error.strerror}") from error


async def _spawn(arguments: list[str], log: Path) -> Process:
    descriptor = await asyncio.to_thread(_open, log)
    try:
        # A session of its own, so that the terminal's Ctrl-C reaches the parent alone.
        return await asyncio.create_subprocess_exec(
            *child.command("pdr_graph.servers.model_server", *arguments),
            env=child.environment(),
            stdin=PIPE,
            stdout=PIPE,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)


async def _started(process: Process, log: Path, timeout_s: float, say: Announce) -> str:
    """Wait until the server answers.

    Returns:
        Its address, `http://127.0.0.1:PORT`.

    Raises:
        LocalError: It ended, or took longer than `timeout_s` seconds.
    """
    try:
        async with asyncio.timeout(timeout_s):
            address = await _address(process, log, say)
            await asyncio.to_thread(_check_health, address)
            return address
    except TimeoutError:
        raise LocalError(
            f"the embedded model was not up after {timeout_s:g} s; its log is {log}"
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
        status = await process.wait()
        raise LocalError(
            f"the embedded model server ended at its start with status {status} "
            f"({last_line(log) or 'it said nothing'}); its log is {log}"
        )
    answer: dict[str, str] = json.loads(line)
    if "error" in answer:
        raise LocalError(
            f"the embedded model cannot be loaded: {answer['error']}; its log is {log}"
        )
    return answer["address"]


def _check_health(address: str) -> None:
    # Not an HTTP client of the usual kind: those would ask a configured proxy for 127.0.0.1.
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except OSError as error:
        raise LocalError(f"the embedded model at {address} does not answer: {error}") from error
    finally:
        connection.close()
    if status != 200:
        raise LocalError(f"the embedded model at {address} is not well: status {status}")


BUDGETS: Mapping[str, object] = MappingProxyType(
    {"max_tokens": 256, "solution_tokens": 192, "kappa": 384}
)
ROUNDS = 2
SHRINK = 4
"""Widths are divided by it: 16, 8, 4 become 4, 2."""


def small_config(name: str, given: Mapping[str, object]) -> PDRConfig:
    """Return a preset scaled down; what the user gave stays as it is."""
    full = preset(name)
    scaled = {
        **BUDGETS,
        "widths": tuple(max(1, width // SHRINK) for width in full.widths[:ROUNDS]),
        "k": min(full.k, 2),
    }
    return preset(name, **{**scaled, **given})


def announcement(config: PDRConfig) -> str:
    """Say why the run is small, and how small."""
    widths = ",".join(map(str, config.widths)) or "none"
    return (
        "no endpoint is configured (--base-url / PDR_BASE_URL): a small model runs here; "
        f"budgets where you set none: widths {widths}, kappa {config.kappa}, "
        f"max_tokens {config.max_tokens}, solution_tokens {config.solution_tokens}"
    )
