"""`pdr-graph eval`: arms over problems, run in this process or by workers of a Ray cluster."""

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

from pdr_graph.cli.commands import DEFAULTS, EvalCommand
from pdr_graph.cli.eval_board import ArmsBoard, announcement, show_arms
from pdr_graph.cli.live import LiveDisplay
from pdr_graph.cli.options import Given, with_variables
from pdr_graph.cli.output import Output, refuse_place
from pdr_graph.cli.signals import Stopper
from pdr_graph.cli.store import LEASE_S, MEMORY, Saver, open_saver, with_keys
from pdr_graph.connect import check_settings, open_judge, open_models
from pdr_graph.errors import ConfigError, EndpointError, counted
from pdr_graph.eval.arms import Arm, make_arms, parse_arm, parse_sweep, swept
from pdr_graph.eval.budgets import Budgets
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.plan import EvalPlan, refuse_changes
from pdr_graph.eval.problems import load_problems
from pdr_graph.eval.records import HEADER, TRACE, read_header, read_run
from pdr_graph.eval.runner import Claim, EvalRunner, RunFolder, SampleExecutor
from pdr_graph.eval.sample import LocalExecutor, RunFacts, SharingClient, sharing_arms
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.llm.models import Models
from pdr_graph.llm.pool import make_http_client
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts
from pdr_graph.servers.llama import BUDGETS, EMBEDDED_SLOTS, is_small
from pdr_graph.settings import Settings, load_settings
from pdr_graph.trace import JsonLinesTrace


def eval_command(command: EvalCommand, output: Output) -> None:
    """Run the samples that are owed, and show each arm's figures."""
    evaluate(command, output)
    show_arms(command.out, output)


def evaluate(command: EvalCommand, output: Output) -> None:
    """Run the samples that are owed.

    Raises:
        ConfigError: the command cannot be carried out as asked.
        RunEndedError: it was stopped, or failed once it had begun.
    """
    settings = load_settings(**command.settings)
    check_settings(settings)
    refuse_place(command.out / HEADER, "--out", command.out)
    specs = swept(
        [parse_arm(text) for text in command.arms], [parse_sweep(text) for text in command.sweep]
    )
    budgets = Budgets(command.b_seq, command.b_total)
    given = with_variables(command.config, DEFAULTS, command.settings_file, output.say)
    common = _common(given, budgets, small=is_small(settings))
    judge = open_judge(settings)
    arms = make_arms(specs, common, budgets, judge)
    if not any(arm.config.weighs for arm in arms):
        if "judge" in command.settings:
            raise ConfigError(
                "a judge weighs drafts, and no arm asks for weights; give an arm finish "
                "weighted_vote or guarded, as vote_first has it, or leave --judge out"
            )
        judge = None
    _refuse_mixed(arms)
    prompts = Prompts.load(settings.prompts)
    dependent = sharing_arms(arms) if command.share_first_round else frozenset()
    if dependent and command.ray is not None:
        raise ConfigError(
            "--share-first-round shares drafts within one process, and --ray has several; leave "
            "one of them out"
        )
    if command.ray is not None:
        refuse_cluster(command.ray, settings)
    # Loaded last, since the data may have to be downloaded.
    problems = load_problems(command.data).first(command.limit)
    plan = EvalPlan(
        problems=problems,
        arms=tuple(arms),
        samples=command.samples,
        seed=command.seed,
        prompts_sha256=prompts.hashes(),
        share_first_round=command.share_first_round,
        judge=judge,
    )
    _refuse_soon(plan, command.out)
    for line in announcement(plan):
        output.say(line)
    session = EvalSession(plan, command, settings, prompts, output, dependent)
    if command.ray is None:
        asyncio.run(session.carry_out())
    else:
        # Before the event loop: Ray takes over the signals, and we take them back.
        with cluster_of(command.ray, command.ray_workers, settings) as session.num_workers:
            asyncio.run(session.carry_out())


@dataclass(slots=True)
class EvalSession:
    """One process's part in an evaluation."""

    plan: EvalPlan
    command: EvalCommand
    settings: Settings
    prompts: Prompts
    output: Output
    dependent: frozenset[str]
    """Arms that share first-round drafts with another."""
    num_workers: int | None = None
    """Workers of a Ray cluster; None runs all samples in this process."""
    begun: bool = False

    async def carry_out(self) -> None:
        """Work until nothing is owed, or until a signal.

        Raises:
            RunEndedError: the run was stopped, or failed once it had begun.
        """
        say, out, stopper = self.output.say, self.command.out, Stopper(self.output.tell)
        with stopper.ending(self._way_on, lambda: self.begun):
            async with (
                open_saver(self.settings, say) as saver,
                open_models(self.settings, announce=say) as models,
            ):
                if self.plan.judge is not None:
                    await self.plan.judge.meet(models.client("drafter"))
                planned, self.plan = self.plan, await self.plan.within(models)
                for line in dict.fromkeys(_derived(planned, self.plan)):
                    say(line)
                asked = self.plan.header(models.name, models.names)
                folder = RunFolder(out)
                header = folder.open(asked)
                refuse_changes(header, asked, out)
                board = ArmsBoard(list(header["arms"]), self._per_arm, self.output)
                keep = not self.command.forget and self.settings.redis_url != MEMORY
                async with self._executor(models, saver, stopper.control) as executor:
                    runner = EvalRunner(
                        executor=executor,
                        folder=folder,
                        max_calls=self._max_calls,
                        watcher=board,
                        control=stopper.control,
                        claim=self._claim(saver),
                        alive=lambda: _answer(models),
                        forget=None if keep else saver.adelete_thread,
                        retry_failed=self.command.retry_failed,
                    )
                    self.begun = True
                    try:
                        with stopper.draining(), LiveDisplay(self.output, board):
                            await runner.work(self.plan.all_samples(header, out))
                    finally:
                        folder.close()

    @asynccontextmanager
    async def _executor(
        self, models: Models, saver: Saver, control: RunControl
    ) -> AsyncIterator[SampleExecutor]:
        """Open what runs samples: this process, or workers of the cluster."""
        process = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        file = self.command.out / TRACE / f"{process}.jsonl"
        trace = None if self.command.no_trace else JsonLinesTrace(file)
        judge = Judge.of_kind(self.plan.arms[0].config.answer, self.plan.problems.score)
        facts = RunFacts(
            data_sha256=self.plan.problems.sha256,
            prompts_sha256=self.plan.prompts_sha256,
            versions=self.plan.versions(),
            dependent=self.dependent,
        )
        if self.num_workers is None:
            yield LocalExecutor(
                models=models.mapped(SharingClient) if self.plan.share_first_round else models,
                saver=saver,
                judge=judge,
                parts=Parts(prompts=self.prompts, trace=trace, control=control),
                facts=facts,
                weigher=self.plan.judge,
            )
            return
        from pdr_graph.eval.ray_cluster import WorkerKit, ray_executor

        kit = WorkerKit(
            settings=with_keys(self.settings),
            open_store=open_unannounced,
            # A worker that died holds its threads until its leases run out.
            claim=partial(by_lease, wait_s=LEASE_S + 1),
            judge=judge,
            prompts=Prompts(dict(self.prompts.templates)),
            facts=facts,
            traced=trace is not None,
            weigher=self.plan.judge,
        )
        async with ray_executor(
            kit, self.num_workers, control=control, trace=trace, say=self.output.say
        ) as executor:
            yield executor

    @property
    def _max_calls(self) -> int:
        """Calls that may be made at once; more would wait within the server."""
        limit = self.settings.max_in_flight
        if self.settings.base_url is None:
            limit = min(limit, EMBEDDED_SLOTS)
        return limit * (self.num_workers or 1)

    def _claim(self, saver: Saver) -> Claim | None:
        """Return the claim by which this process holds a thread; None if none is needed."""
        alone = self.settings.redis_url is None or self.num_workers is not None
        return None if alone else by_lease(saver)

    @property
    def _per_arm(self) -> int:
        return len(self.plan.problems.problems) * self.plan.samples

    def _way_on(self) -> str:
        if not self.begun:
            return "stopped before the run had begun"
        done = len(read_run(self.command.out).samples)
        total = self._per_arm * len(self.plan.arms)
        done_of_all = (
            f"{done} of {counted(total, 'sample')} {'is' if total == 1 else 'are'} recorded"
        )
        return f"{done_of_all}; the same command continues with the rest"


async def _answer(models: Models) -> bool:
    """Tell whether all endpoints answer at this moment."""
    from pdr_graph.llm.chat_vllm import ChatVLLM  # late, as `open_client` does

    async with make_http_client() as http:
        for client in models.clients:
            model = client.model
            if not isinstance(model, ChatVLLM) or model.openai_api_base is None:
                continue
            key = model.root_async_client.api_key
            try:
                await probe_endpoint(http, model.openai_api_base, api_key=key, model=client.name)
            except EndpointError:
                return False
    return True


@contextmanager
def cluster_of(address: str, num_workers: int | None, settings: Settings) -> Iterator[int]:
    """Connect to a Ray cluster while the block runs; yields how many workers to start there.

    Raises:
        ConfigError: there is none, or its workers could not reach model or store.
    """
    refuse_cluster(address, settings)
    from pdr_graph.eval.ray_cluster import MOST_WORKERS, connect, disconnect

    processors = connect(address)
    try:
        yield num_workers or max(1, min(processors, MOST_WORKERS))
    finally:
        disconnect()


def refuse_cluster(address: str, settings: Settings) -> None:
    """Refuse a cluster whose workers could not reach model or store.

    Raises:
        ConfigError: one of them is on this machine alone.
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


def by_lease(saver: Saver, wait_s: float = 0.0) -> Claim | None:
    """Return a claim that keeps other machines off a thread; None if the store has no leases."""
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
    """Open the store of the settings on a worker, without announcements."""
    return open_saver(settings, lambda line: None)


def _derived(asked: EvalPlan, planned: EvalPlan) -> Iterator[str]:
    """Yield what was derived from the model's window."""
    for before, arm in zip(asked.arms, planned.arms, strict=True):
        if arm is not before:
            yield arm.budget["derived"]


def _common(given: Given, budgets: Budgets, *, small: bool) -> dict[str, object]:
    """Return the fields of all arms: what was asked for, and small budgets for a small model."""
    if not small:
        return dict(given)
    derived = budgets.b_seq is not None or budgets.b_total is not None
    least = {
        name: value for name, value in BUDGETS.items() if not (derived and name == "max_tokens")
    }
    return {**least, **given}


def _refuse_mixed(arms: Sequence[Arm]) -> None:
    kinds = {arm.config.answer: arm.name for arm in arms}
    if len(kinds) > 1:
        named = " and ".join(f"{name!r} is {kind}" for kind, name in kinds.items())
        raise ConfigError(f"arms differ in their kind of answer ({named}); give all --answer")
    Judge.of_kind(next(iter(kinds)), None)


def _refuse_soon(plan: EvalPlan, out: Path) -> None:
    """Refuse a changed command before any server is started; the model is compared later."""
    if (out / HEADER).exists():
        recorded = read_header(out)
        begun = plan.as_begun(recorded)
        refuse_changes(recorded, begun.header(recorded["model"], recorded.get("models")), out)
