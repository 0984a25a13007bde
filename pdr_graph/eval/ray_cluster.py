"""An evaluation over a Ray cluster: samples go to workers, records come back one by one.

The process that was started keeps the run folder and decides what is owed; workers
(`ray_worker.py`) run samples, wherever they are. A worker that dies is started anew by Ray, and
what it had begun is gone on with by another, from the last finished draft.

https://docs.ray.io/en/latest/ray-core/actors.html

The way to a Ray cluster, and away from it.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from time import monotonic
from typing import Any

from langgraph.runtime import RunControl

from pdr_graph.errors import CallError, ConfigError, DrainedError, EndpointError, PDRError
from pdr_graph.eval.ray_worker import Kit, Saver, Worker, WorkerOutcome
from pdr_graph.eval.records import SampleRecord
from pdr_graph.eval.runner import ElsewhereError
from pdr_graph.eval.sample import Sample
from pdr_graph.events import OnEvent
from pdr_graph.trace import Trace

MOST_DEATHS = 3
"""Workers that one sample may take along before it is held to be the cause."""
_LOOK_S = 0.2
"""Between looks at whether this process was asked to stop."""
_REST_S = 2.0
"""For which a worker that died is given nothing, while Ray starts it anew."""
_SLACK = 8
"""Calls that a worker takes beside its samples: to drain, to close."""


class WorkersDiedError(PDRError, RuntimeError):
    """A sample was begun by one worker after another, and each died."""


class _FailedError(CallError):
    """A sample that failed on a worker, with the record that it made."""

    def __init__(self, sentence: str, record: SampleRecord) -> None:
        self.record = record
        super().__init__(sentence)


@dataclass(slots=True)
class _Actor:
    """One worker, as this process sees it."""

    handle: Any  # Any: Ray's handles are made at run time
    load: int = 0
    """Calls that its samples may make at once."""
    rests_until: float = 0.0


@dataclass(slots=True)
class RayLab:
    """Has samples run by workers; stands in the place of a `Lab`."""

    actors: list[_Actor]
    saver: Saver
    control: RunControl
    trace: Trace | None
    lost: Callable[[BaseException], bool]
    """Tells whether an error says that a worker is gone."""
    say: Callable[[str], None]

    @property
    def drained(self) -> bool:
        """Whether this process was asked to stop."""
        return self.control.drain_requested

    async def pass_on_drain(self) -> None:
        """Wait until this process is asked to stop, and ask the workers."""
        while not self.drained:  # noqa: ASYNC110  # a RunControl cannot be waited for
            await asyncio.sleep(_LOOK_S)
        for actor in self.actors:
            actor.handle.drain.remote()

    async def run(self, sample: Sample, on_event: OnEvent) -> SampleRecord:
        """Have a sample run to its end, by another worker where one is lost.

        Raises:
            CallError: it failed.
            DrainedError: it was stopped, and can be gone on with.
            ElsewhereError: another process has it.
            WorkersDiedError: workers died of it, or beside it.
            EndpointError: a worker reaches model or store no more.
        """
        for _ in range(MOST_DEATHS):
            outcome = await self._ask(sample)
            if outcome is not None:
                return await self._read(sample, outcome)
            if self.drained:
                raise DrainedError(sample.thread_id)
            self.say(f"a worker was lost; another goes on with {sample.thread_id}")
        raise WorkersDiedError(
            f"{MOST_DEATHS} workers died while they ran {sample.thread_id}; see Ray's logs"
        )

    async def failed(self, sample: Sample, error: PDRError) -> SampleRecord:
        """Return the record that the worker made of a failed sample."""
        assert isinstance(error, _FailedError)  # `run` raises no other that is recorded
        return error.record

    async def forget(self, sample: Sample) -> None:
        """Delete a sample's thread."""
        await self.saver.adelete_thread(sample.thread_id)

    async def _ask(self, sample: Sample) -> WorkerOutcome | None:
        """Return what the freest worker says; None if it was lost."""
        now = monotonic()
        actor = min(self.actors, key=lambda each: (each.rests_until > now, each.load))
        await asyncio.sleep(max(0.0, actor.rests_until - now))
        size = max((1, *sample.config.widths))
        actor.load += size
        try:
            outcome: WorkerOutcome = await actor.handle.run.remote(sample)
        # Of Ray's own tree, which only `lost` knows.
        except Exception as error:
            if not self.lost(error):
                raise
            actor.rests_until = monotonic() + _REST_S
            return None
        finally:
            actor.load -= size
        return outcome

    async def _read(self, sample: Sample, outcome: WorkerOutcome) -> SampleRecord:
        if self.trace is not None:
            for call in outcome.calls:
                await self.trace.record(call)
        if outcome.left:
            raise (
                DrainedError(sample.thread_id) if self.drained else ElsewhereError(sample.thread_id)
            )
        if outcome.error is not None:
            raise EndpointError(f"a Ray worker cannot go on: {outcome.error}")
        if outcome.failure is not None:
            record, why = outcome.failure
            raise _FailedError(why, record)
        assert outcome.record is not None  # one of the four is set
        return outcome.record


@asynccontextmanager
async def ray_lab(
    kit: Kit,
    num_workers: int,
    *,
    saver: Saver,
    control: RunControl,
    trace: Trace | None,
    say: Callable[[str], None],
) -> AsyncIterator[RayLab]:
    """Start workers on the cluster that `connect` found, and end them with the block.

    Raises:
        ConfigError: a worker has another version of this package.
        EndpointError: a worker cannot reach model or store.
    """
    import ray
    from ray.exceptions import RayActorError, RayError

    remote = ray.remote(Worker).options(
        # They wait for the model; to ask for processors would be to wait for them.
        num_cpus=0,
        scheduling_strategy="SPREAD",
        max_restarts=-1,
        max_concurrency=kit.settings.max_in_flight + _SLACK,
    )
    handles = [remote.remote(kit) for _ in range(num_workers)]
    try:
        say(f"ray: starting {num_workers} workers")
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
                    f"{version('pdr-graph')}; install the same everywhere"
                )
            if "error" in each:
                raise EndpointError(f"the Ray worker on {each['host']}: {each['error']}")
        hosts = {each["host"] for each in about}
        say(f"ray: {num_workers} workers on {', '.join(sorted(hosts))}")
        lab = RayLab(
            actors=[_Actor(handle) for handle in handles],
            saver=saver,
            control=control,
            trace=trace,
            lost=lambda error: isinstance(error, RayActorError),
            say=say,
        )
        draining = asyncio.create_task(lab.pass_on_drain())
        try:
            yield lab
        finally:
            draining.cancel()
    finally:
        for handle in handles:
            ray.kill(handle)


MOST_WORKERS = 16
"""Where their number is not given, however many processors the cluster has."""
_CONNECT_S = 5.0


def connect(address: str) -> int:
    """Connect to a cluster, `local` for one of this machine's own; returns its processors.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray: pip install 'pdr-graph[ray]'") from None
    if address not in {"auto", "local"}:
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a user's evaluations are the user's
    own = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    # Errors of several libraries, by the form of the address.
    except Exception as error:  # noqa: BLE001
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({why}); start one by `ray start --head`, or "
            "use --ray local"
        ) from None
    return int(ray.cluster_resources().get("CPU", 1))


def _check_reachable(address: str) -> None:
    """Tell at once what Ray itself would take minutes to say."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdecimal()) or "/" in address:
        raise ConfigError(
            f"--ray {address!r} is no HOST:PORT of a cluster's head; `auto` finds the cluster of "
            "this machine, `local` starts one"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({error}); start one by `ray start --head`, "
            "or use --ray local"
        ) from None


def disconnect() -> None:
    """Leave the cluster, and end it if it was ours."""
    import ray

    ray.shutdown()
