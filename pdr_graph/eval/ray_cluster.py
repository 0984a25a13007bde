"""An evaluation over a Ray cluster: samples go to workers, and their records come back.

The process that the user started keeps the run folder and decides which samples are owed. Workers
run them on any node. If a worker dies, Ray starts it again, and another worker resumes its samples
from their last finished drafts.

A worker gets all that it needs by value and returns the outcome of each sample. It never touches
the run folder, which may be on another machine. It holds each thread under the store's lease, so
that two workers never write to one thread. A worker itself needs no Ray, nor does importing this
module.

https://docs.ray.io/en/latest/ray-core/actors.html
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from time import monotonic
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl

from pdr_graph.connect import open_models
from pdr_graph.errors import (
    ConfigError,
    DrainedError,
    EndpointError,
    PDRError,
    counted,
    install_command,
)
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.records import SampleRecord
from pdr_graph.eval.runner import Claim, ElsewhereError
from pdr_graph.eval.sample import LocalExecutor, RunFacts, Sample
from pdr_graph.events import OnEvent
from pdr_graph.judge import DraftJudge
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts
from pdr_graph.settings import Settings
from pdr_graph.trace import Trace, TraceRecord

Saver = BaseCheckpointSaver[str]
OpenStore = Callable[[Settings], AbstractAsyncContextManager[Saver]]

MOST_WORKERS = 16
"""If their number is not given, however many processors the cluster has."""
MOST_DEATHS = 3
"""If so many workers die while they run one sample, the sample is to blame."""
_CONNECT_S = 5.0
_POLL_S = 0.2
"""Seconds between two checks of whether this process was asked to stop."""
_RESTART_S = 2.0
"""Seconds for which a dead worker gets no samples, while Ray starts it again."""
_MORE_CALLS = 8
"""Calls that a worker takes besides its samples: to drain, to close."""


class WorkersDiedError(PDRError, RuntimeError):
    """Several workers died, one after another, while they ran the same sample."""


@dataclass(frozen=True, slots=True)
class WorkerKit:
    """The arguments that a worker is made from; every field can be pickled."""

    settings: Settings
    open_store: OpenStore
    claim: Callable[[Saver], Claim | None]
    """Makes the claim on a thread, which waits for the lease of a dead worker to run out."""
    judge: Judge
    prompts: Prompts
    facts: RunFacts
    traced: bool
    """Whether model calls are returned in full."""
    weigher: DraftJudge | None = None
    """Weighs drafts, in the arms that ask for weights."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """The outcome of a sample.

    Without record and error the sample is still owed: the worker was asked to stop, or another
    process has the thread.
    """

    record: SampleRecord | None
    """Of a finished sample, failed or not."""
    error: str | None
    """Why this worker cannot run any sample, in a sentence."""
    calls: list[TraceRecord]
    """Every model call in full, if `traced`."""


@dataclass(slots=True)
class _CollectedTrace:
    """Keeps the calls of a sample until they are returned."""

    calls: list[TraceRecord] = field(default_factory=list)

    async def record(self, call: TraceRecord) -> None:
        """Keep one call."""
        self.calls.append(call)


class Worker:
    """Runs samples side by side, each in a thread of the store."""

    def __init__(self, kit: WorkerKit) -> None:
        self._kit = kit
        self._control = RunControl()
        self._opening = asyncio.Lock()
        self._held = AsyncExitStack()
        self._executor: LocalExecutor | None = None
        self._claim: Claim | None = None

    async def open(self) -> dict[str, str]:
        """Connect to model and store.

        Returns:
            `host`, `version`; and `error`, a sentence, if the worker cannot work.
        """
        about = {"host": socket.gethostname(), "version": version("pdr-graph")}
        try:
            await self._ready()
        except PDRError as error:
            about["error"] = str(error)
        return about

    async def run(self, sample: Sample) -> WorkerOutcome:
        """Run a sample to its end, from its last checkpoint if it was begun before."""
        trace = _CollectedTrace()
        record, why = None, None
        try:
            # A worker that Ray restarted is not open yet.
            executor = await self._ready()
            if self._kit.traced:
                executor = replace(executor, parts=replace(executor.parts, trace=trace))
            async with AsyncExitStack() as held:
                claim = self._claim
                if not claim or await held.enter_async_context(claim(sample.thread_id)):
                    record = await executor.run(sample, lambda event: None)
        except DrainedError:
            pass
        except PDRError as error:
            why = str(error)
        return WorkerOutcome(record, why, trace.calls)

    async def drain(self) -> None:
        """Stop every sample at its next step; it can be resumed from there."""
        self._control.request_drain()

    async def close(self) -> None:
        """Close the connections."""
        await self._held.aclose()

    async def _ready(self) -> LocalExecutor:
        async with self._opening:
            if self._executor is None:
                kit = self._kit
                saver = await self._held.enter_async_context(kit.open_store(kit.settings))
                models = await self._held.enter_async_context(open_models(kit.settings))
                self._claim = kit.claim(saver)
                self._executor = LocalExecutor(
                    models=models,
                    saver=saver,
                    judge=kit.judge,
                    parts=Parts(prompts=kit.prompts, control=self._control),
                    facts=kit.facts,
                    weigher=kit.weigher,
                )
            return self._executor


def connect(address: str) -> int:
    """Connect to a cluster and return the number of its processors; `local` starts one here.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError(f"--ray needs Ray: {install_command('ray')}") from None
    if address not in {"auto", "local"}:
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report to third parties
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    # The form of the address decides which library raises here.
    except Exception as error:  # noqa: BLE001
        raise _no_cluster(address, error) from None
    return int(ray.cluster_resources().get("CPU", 1))


def _check_reachable(address: str) -> None:
    """Refuse an address at which nothing listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal()) or "/" in address:
        raise ConfigError(
            f"--ray {address!r} is not HOST:PORT of a cluster's head; `auto` finds the cluster of "
            "this machine, `local` starts one"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> ConfigError:
    why = " ".join(str(error).split())[:200]
    return ConfigError(
        f"no Ray cluster answers at {address!r} ({why}); start one with `ray start --head`, or use "
        "--ray local"
    )


def disconnect() -> None:
    """Leave the cluster; a cluster that `connect` started ends."""
    import ray

    ray.shutdown()


@dataclass(slots=True)
class _Actor:
    """One worker, as seen by this process."""

    handle: Any  # Any: Ray makes the types of handles at run time
    load: int = 0
    """Calls that its samples may make at once."""
    restarts_until: float = 0.0


@dataclass(slots=True)
class RayExecutor:
    """Has samples run by the workers of a cluster."""

    actors: list[_Actor]
    control: RunControl
    trace: Trace | None
    say: Callable[[str], None]

    async def pass_on_drain(self) -> None:
        """Wait until this process is asked to stop, then ask the workers."""
        while not self.control.drain_requested:  # noqa: ASYNC110  # it has no event to wait for
            await asyncio.sleep(_POLL_S)
        for actor in self.actors:
            actor.handle.drain.remote()

    async def run(self, sample: Sample, on_event: OnEvent) -> SampleRecord:
        """Have a sample run to its end; if its worker dies, another one resumes it.

        Raises:
            DrainedError: the run was asked to stop; the sample can be resumed.
            ElsewhereError: another process has the sample.
            WorkersDiedError: several workers died while they ran it.
            EndpointError: a worker cannot reach model or store.
        """
        for _ in range(MOST_DEATHS):
            outcome = await self._ask(sample)
            if outcome is not None:
                break
            if self.control.drain_requested:
                raise DrainedError(sample.thread_id)
            self.say(f"a worker was lost; another goes on with {sample.thread_id}")
        else:
            raise WorkersDiedError(
                f"{MOST_DEATHS} workers died while they ran {sample.thread_id}; see Ray's logs"
            )
        if self.trace is not None:
            for call in outcome.calls:
                await self.trace.record(call)
        if outcome.error is not None:
            raise EndpointError(f"a Ray worker cannot go on: {outcome.error}")
        if outcome.record is not None:
            return outcome.record
        if self.control.drain_requested:
            raise DrainedError(sample.thread_id)
        raise ElsewhereError(sample.thread_id)

    async def _ask(self, sample: Sample) -> WorkerOutcome | None:
        """Return what the least busy worker says; None if it died."""
        from ray.exceptions import RayActorError

        now = monotonic()
        actor = min(self.actors, key=lambda each: (each.restarts_until > now, each.load))
        await asyncio.sleep(max(0.0, actor.restarts_until - now))
        size = max((1, *sample.config.widths))
        actor.load += size
        try:
            outcome: WorkerOutcome = await actor.handle.run.remote(sample)
        except RayActorError:
            actor.restarts_until = monotonic() + _RESTART_S
            return None
        finally:
            actor.load -= size
        return outcome


@asynccontextmanager
async def ray_executor(
    kit: WorkerKit,
    num_workers: int,
    *,
    control: RunControl,
    trace: Trace | None,
    say: Callable[[str], None],
) -> AsyncIterator[RayExecutor]:
    """Start workers on the cluster of `connect`; they end with the block.

    Raises:
        ConfigError: a worker has another version of this package.
        EndpointError: a worker cannot start, or cannot reach model or store.
    """
    import ray
    from ray.exceptions import RayError

    remote = ray.remote(Worker).options(
        num_cpus=0,  # workers wait for the model, so they need no processor to themselves
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        max_concurrency=kit.settings.max_in_flight + _MORE_CALLS,
    )
    handles = [remote.remote(kit) for _ in range(num_workers)]
    try:
        say(f"ray: starting {counted(num_workers, 'worker')}")
        try:
            about = await asyncio.gather(*(handle.open.remote() for handle in handles))
        except RayError as error:
            why = " ".join(str(error).split())[-300:]
            raise EndpointError(
                f"a Ray worker cannot start: {why}; pdr-graph {version('pdr-graph')} must be "
                "installed on every node"
            ) from None
        for each in about:
            if each["version"] != version("pdr-graph"):
                raise ConfigError(
                    f"the Ray worker on {each['host']} has pdr-graph {each['version']}, this is "
                    f"{version('pdr-graph')}; install the same version everywhere"
                )
            if "error" in each:
                raise EndpointError(f"the Ray worker on {each['host']}: {each['error']}")
        hosts = sorted({each["host"] for each in about})
        say(f"ray: {counted(num_workers, 'worker')} on {', '.join(hosts)}")
        executor = RayExecutor(list(map(_Actor, handles)), control, trace, say)
        draining = asyncio.create_task(executor.pass_on_drain())
        try:
            yield executor
        finally:
            draining.cancel()
    finally:
        for handle in handles:
            ray.kill(handle)
