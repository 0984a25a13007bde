"""`pdr-graph eval`: arms over problems, measured.

Where the samples of an evaluation are run: in this process, or by workers of a Ray cluster.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from langgraph.runtime import RunControl
from pdr_checkpoints import RedisSaver, ThreadBusyError

from pdr_graph.cli.eval_board import Board, announcement, board_shown, show_arms
from pdr_graph.cli.failure import RunEndedError
from pdr_graph.cli.options import Given
from pdr_graph.cli.output import Output
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.store import LEASE_S, MEMORY, Saver, open_saver
from pdr_graph.connect import EMBEDDED_SLOTS, open_client
from pdr_graph.errors import ConfigError, DrainedError, EndpointError
from pdr_graph.eval.arms import Arm, make_arms, parse_arm, parse_sweep, swept
from pdr_graph.eval.budgets import Budgets
from pdr_graph.eval.folder import RunFolder
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.plan import EvalPlan, refuse_changes
from pdr_graph.eval.problems import load_problems
from pdr_graph.eval.records import HEADER, TRACE, read_header, read_run
from pdr_graph.eval.runner import Claim, EvalRunner, SampleExecutor
from pdr_graph.eval.sample import LocalExecutor, RunFacts, SharingClient, sharing_arms
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts
from pdr_graph.servers.llama import BUDGETS
from pdr_graph.settings import Settings, load_settings
from pdr_graph.trace import JsonLinesTrace, Trace


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster that this process is connected to."""

    num_workers: int


@dataclass(frozen=True, slots=True)
class Equipment:
    """What a sample is run with, wherever it is."""

    client: ModelClient
    saver: Saver
    settings: Settings
    judge: Judge
    prompts: Prompts
    trace: Trace | None
    control: RunControl
    facts: RunFacts

    def here(self) -> LocalExecutor:
        """Return what runs samples in this process."""
        return LocalExecutor(
            client=self.client,
            saver=self.saver,
            judge=self.judge,
            parts=Parts(prompts=self.prompts, trace=self.trace, control=self.control),
            facts=self.facts,
        )

    def on(self, cluster: Cluster, output: Output) -> AbstractAsyncContextManager[SampleExecutor]:
        """Return what has workers of a cluster run them."""
        from pdr_graph.eval.ray_cluster import ray_executor
        from pdr_graph.eval.ray_worker import WorkerKit

        kit = WorkerKit(
            settings=self.settings,
            open_store=open_unannounced,
            # A worker that died holds its threads until its leases run out.
            claim=partial(by_lease, wait_s=LEASE_S + 1),
            judge=self.judge,
            prompts=Prompts(dict(self.prompts.templates)),
            facts=self.facts,
            traced=self.trace is not None,
        )
        return ray_executor(
            kit,
            cluster.num_workers,
            control=self.control,
            trace=self.trace,
            say=output.say,
        )

    @asynccontextmanager
    async def opened(
        self, cluster: Cluster | None, output: Output
    ) -> AsyncIterator[SampleExecutor]:
        """Open what runs samples for as long as the block lasts."""
        if cluster is None:
            yield self.here()
        else:
            async with self.on(cluster, output) as executor:
                yield executor

    async def alive(self) -> bool:
        """Tell whether the endpoint answers now."""
        model = self.client.model
        if not isinstance(model, ChatVLLM) or model.openai_api_base is None:
            return True
        http = make_http_client()
        try:
            await probe_endpoint(
                http,
                model.openai_api_base,
                api_key=self.settings.api_key.get_secret_value(),
                model=self.client.name,
            )
        except EndpointError:
            return False
        finally:
            await http.aclose()
        return True

    def max_calls(self, cluster: Cluster | None) -> int:
        """Return how many calls may be made at once; more would wait within the server."""
        limit = self.settings.max_in_flight
        if self.settings.base_url is None:
            limit = min(limit, EMBEDDED_SLOTS)
        return limit * (cluster.num_workers if cluster else 1)

    def claim(self, cluster: Cluster | None) -> Claim | None:
        """Return how this process holds a thread; None where it need not."""
        named = self.settings.redis_url is not None
        return by_lease(self.saver) if named and cluster is None else None


@contextmanager
def cluster_of(address: str, num_workers: int | None, settings: Settings) -> Iterator[Cluster]:
    """Connect to a Ray cluster for as long as the block lasts.

    Raises:
        ConfigError: there is none, or its workers could not reach model or store.
    """
    if settings.base_url is None:
        raise ConfigError(
            f"--ray {address} needs a model endpoint that its workers can reach; set --base-url / "
            "PDR_BASE_URL"
        )
    if settings.redis_url in {None, MEMORY}:
        raise ConfigError(
            f"--ray {address} needs a store that its workers can reach; set --checkpoint / "
            "PDR_REDIS_URL to redis://…"
        )
    from pdr_graph.eval.ray_cluster import MOST_WORKERS, connect, disconnect

    processors = connect(address)
    try:
        yield Cluster(num_workers or max(1, min(processors, MOST_WORKERS)))
    finally:
        disconnect()


def by_lease(saver: Saver, wait_s: float = 0.0) -> Claim | None:
    """Return how a thread is held against other machines; None where the store cannot."""
    if not isinstance(saver, RedisSaver):
        return None

    @asynccontextmanager
    async def claim(thread_id: str) -> AsyncIterator[bool]:
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(saver.lease(thread_id, ttl_s=LEASE_S, wait_s=wait_s))
            except ThreadBusyError:
                mine = False
            else:
                mine = True
            yield mine

    return claim


def open_unannounced(settings: Settings) -> AbstractAsyncContextManager[Saver]:
    """Open the store of the settings on a worker, where nobody reads along."""
    return open_saver(settings, lambda line: None)


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What was typed."""

    data: str
    arms: Sequence[str]
    sweeps: Sequence[str]
    samples: int
    out: Path
    seed: int
    limit: int | None
    b_seq: int | None
    b_total: int | None
    share_first_round: bool
    retry_failed: bool
    forget: bool
    no_trace: bool
    ray: str | None
    """Address of a cluster; None runs all samples in this process."""
    ray_workers: int | None
    """None lets the cluster's size decide."""


def eval_command(
    request: EvalRequest, given_config: Given, given_settings: Given, output: Output
) -> None:
    """Run what is owed, and show each arm's figures."""
    settings = load_settings(**given_settings)
    specs = swept(
        [parse_arm(text) for text in request.arms], [parse_sweep(text) for text in request.sweeps]
    )
    problems = load_problems(request.data).first(request.limit)
    budgets = Budgets(request.b_seq, request.b_total)
    common = _common(given_config, budgets, embedded=settings.base_url is None)
    arms = make_arms(specs, common, budgets)
    _refuse_mixed(arms)
    prompts = Prompts.load(settings.prompts)
    plan = EvalPlan(
        problems=problems,
        arms=tuple(arms),
        samples=request.samples,
        seed=request.seed,
        prompts_sha256=prompts.hashes(),
        share_first_round=request.share_first_round,
    )
    _refuse_soon(plan, request.out)
    dependent = sharing_arms(arms) if request.share_first_round else frozenset()
    if dependent and request.ray is not None:
        raise ConfigError(
            "--share-first-round shares drafts within one process, and --ray has several; leave "
            "one of them out"
        )
    for line in announcement(plan):
        output.say(line)
    work = _Work(plan, request, settings, prompts, output, dependent)
    if request.ray is None:
        asyncio.run(work.carry_out())
    else:
        # Before the event loop: what connects to it takes over signals, and we take them back.
        with cluster_of(request.ray, request.ray_workers, settings) as work.cluster:
            asyncio.run(work.carry_out())
    show_arms(request.out, output)


@dataclass(slots=True)
class _Work:
    """One process's part in a run."""

    plan: EvalPlan
    request: EvalRequest
    settings: Settings
    prompts: Prompts
    output: Output
    dependent: frozenset[str]
    """Arms that share first-round drafts with another."""
    cluster: Cluster | None = None
    """None runs all samples in this process."""
    begun: bool = False

    async def carry_out(self) -> None:
        """Work until nothing is owed, or until told to stop.

        Raises:
            RunEndedError: the run was stopped, or failed once it had begun.
        """
        stopper = Stopper(self.output.tell)
        with stopper.listening():
            try:
                await self._run(stopper)
            except DrainedError:
                raise self._ended(stopper.exit_code, None) from None
            except asyncio.CancelledError:
                if stopper.received is None:
                    raise
                raise self._ended(stopper.exit_code, None) from None
            except ConfigError:
                raise
            # Whatever ended the run, the top of the command line says it; here we add the way on.
            except Exception as error:
                if not self.begun:
                    raise
                raise self._ended(None, error) from error

    async def _run(self, stopper: Stopper) -> None:
        say = self.output.say
        async with (
            open_saver(self.settings, say) as saver,
            open_client(self.settings, announce=say) as client,
        ):
            await self.plan.check_window(client)
            asked = self.plan.header(client.name)
            folder = RunFolder(self.request.out)
            header = folder.open(asked)
            refuse_changes(header, asked, self.request.out)
            board = Board(list(header["arms"]), self._per_arm, self.output)
            equipment = self._equipment(client, saver, stopper)
            async with equipment.opened(self.cluster, self.output) as executor:
                keep = not self.request.forget and self.settings.redis_url != MEMORY
                runner = EvalRunner(
                    executor=executor,
                    folder=folder,
                    max_calls=equipment.max_calls(self.cluster),
                    watcher=board,
                    control=stopper.control,
                    claim=equipment.claim(self.cluster),
                    alive=equipment.alive,
                    forget=None if keep else saver.adelete_thread,
                    retry_failed=self.request.retry_failed,
                )
                self.begun = True
                try:
                    with stopper.draining():
                        async with board_shown(self.output, board):
                            await runner.work(self.plan.all_samples(header, self.request.out))
                finally:
                    folder.close()

    def _equipment(self, client: ModelClient, saver: Saver, stopper: Stopper) -> Equipment:
        process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        file = self.request.out / TRACE / f"{process}.jsonl"
        return Equipment(
            client=SharingClient(client) if self.plan.share_first_round else client,
            saver=saver,
            settings=self.settings,
            judge=Judge.of_kind(self.plan.arms[0].config.answer, self.plan.problems.score),
            prompts=self.prompts,
            trace=None if self.request.no_trace else JsonLinesTrace(file),
            control=stopper.control,
            facts=RunFacts(
                data_sha256=self.plan.problems.sha256,
                prompts_sha256=self.plan.prompts_sha256,
                versions=self.plan.versions(),
                dependent=self.dependent,
            ),
        )

    @property
    def _per_arm(self) -> int:
        return len(self.plan.problems.problems) * self.plan.samples

    def _ended(self, exit_code: int | None, cause: Exception | None) -> RunEndedError:
        if not self.begun:
            return RunEndedError("stopped before the run had begun", exit_code, cause)
        done = len(read_run(self.request.out).samples)
        total = self._per_arm * len(self.plan.arms)
        way_on = f"{done} of {total} samples are recorded; the same command goes on with the rest"
        return RunEndedError(way_on, exit_code, cause)


def _common(given: Given, budgets: Budgets, *, embedded: bool) -> dict[str, object]:
    """Return the fields of all arms: what was asked for, and small budgets for a small model."""
    if not embedded:
        return dict(given)
    derived = budgets.b_seq is not None or budgets.b_total is not None
    small = {
        name: value for name, value in BUDGETS.items() if not (derived and name == "max_tokens")
    }
    return {**small, **given}


def _refuse_mixed(arms: Sequence[Arm]) -> None:
    kinds = {arm.config.answer: arm.name for arm in arms}
    if len(kinds) > 1:
        named = " and ".join(f"{name!r} is {kind}" for kind, name in kinds.items())
        raise ConfigError(f"arms differ in their kind of answer ({named}); give all --answer")
    Judge.of_kind(next(iter(kinds)))


def _refuse_soon(plan: EvalPlan, out: Path) -> None:
    """Refuse a changed command before any server is started; the model is compared later."""
    if (out / HEADER).exists():
        recorded = read_header(out)
        refuse_changes(recorded, plan.header(recorded["model"]), out)
