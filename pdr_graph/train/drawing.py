"""Opens the policy that draws the rollouts, and the way by which new weights reach it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pdr_graph.connect import open_client
from pdr_graph.eval.judging import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.policy.client import policy_client
from pdr_graph.policy.policy import Policy
from pdr_graph.policy.transformers_policy import TransformersPolicy
from pdr_graph.settings import load_settings
from pdr_graph.train.advantage import Row
from pdr_graph.train.checks import push_of
from pdr_graph.train.engine_beside import engine_beside
from pdr_graph.train.kept_trajectories import keep
from pdr_graph.train.plan import Plan
from pdr_graph.train.preparation import Prepared
from pdr_graph.train.push.disk import DiskReload
from pdr_graph.train.push.in_process import InProcess
from pdr_graph.train.push.lora import LoraPush
from pdr_graph.train.push.nccl import NcclPush
from pdr_graph.train.push.protocol import WeightPush
from pdr_graph.train.push.server import Server
from pdr_graph.train.recording import telling_tokens
from pdr_graph.train.rollouts import Collector
from pdr_graph.train.server_models import base_model, forget_adapters
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.trajectory import Trajectory

PUSHED = "pushed"
"""Folder of a run in which a server finds new weights."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The rollouts of some problems, as the trainer takes them."""

    trajectories: Sequence[Trajectory]
    rows: Sequence[Sequence[Row]]
    """Of each problem."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """Draws the rollouts of a step; what the trainer calls."""

    collector: Collector
    runner: asyncio.Runner
    """One event loop for the whole run: connections outlive a step."""
    push: WeightPush
    record: Path | None
    """Folder in which trajectories are kept; None keeps none."""

    def __call__(
        self, problems: Sequence[Problem], plans: Sequence[Plan], *, seed: int, policy_version: int
    ) -> Drawn:
        """Draw the rollouts of some problems."""
        rollouts = self.runner.run(
            self.collector.collect(problems, plans, seed=seed, policy_version=policy_version)
        )
        if self.record is not None:
            keep(self.record, rollouts.trajectories)
        return Drawn(rollouts.trajectories, [each.rows for each in rollouts.problems])


@contextmanager
def drawing(
    prepared: Prepared,
    model: Any,  # Any: a transformers model, or one with an adapter
    tokenizer: Any,  # Any: transformers' tokenizer
    folder: Path,
) -> Iterator[Drawing]:
    """Open the policy for as long as the block lasts.

    Args:
        prepared: The run.
        model: What is trained.
        tokenizer: Its tokenizer.
        folder: Of the run.

    Raises:
        ConfigError: the policy needs what is not installed.
        EndpointError: no server answers.
    """
    settings, rl = prepared.settings, prepared.rl
    assert rl is not None  # else nothing is drawn
    with asyncio.Runner() as runner:
        opened = _opened(prepared, model, tokenizer, folder)
        client, push = runner.run(opened.__aenter__())
        collector = Collector(
            client,
            Judge.of_kind(settings.config.answer, rl.problems.score),
            settings.config,
            draft_credit=settings.objective.draft_credit,
            distill_credit=settings.objective.distill_credit,
        )
        record = folder if settings.rollouts.record else None
        try:
            yield Drawing(collector, runner, push, record)
        finally:
            runner.run(opened.__aexit__(None, None, None))


@asynccontextmanager
async def _opened(
    prepared: Prepared,
    model: Any,  # Any: as above
    tokenizer: Any,
    folder: Path,
) -> AsyncIterator[tuple[ModelClient, WeightPush]]:
    settings, policy = prepared.settings, prepared.settings.policy
    if policy.kind == "vllm-http":
        async with _served(settings, tokenizer, folder) as served:
            yield served
        return
    own: Policy = TransformersPolicy(model, tokenizer, most_rows=policy.max_in_flight)
    push: WeightPush = InProcess()
    if policy.kind == "vllm-colocate":
        own, push = engine_beside(prepared)
    client = policy_client(
        own, tokenizer, name=settings.model.name, chat_template_kwargs=policy.chat_template
    )
    yield client, push


@asynccontextmanager
async def _served(
    settings: TrainSettings, tokenizer: Any, folder: Path
) -> AsyncIterator[tuple[ModelClient, WeightPush]]:
    policy = settings.policy
    key = load_settings().api_key
    server = Server(str(policy.base_url), key.get_secret_value())
    if PartialState().is_main_process and push_of(settings) == "lora":
        await forget_adapters(server)
        shutil.rmtree(folder / PUSHED, ignore_errors=True)
    own = load_settings(
        base_url=policy.base_url,
        model=policy.served_model or await base_model(server),
        max_in_flight=policy.max_in_flight,
    )
    async with open_client(own) as client:
        assert isinstance(client.model, ChatVLLM)  # what is opened for an endpoint
        template = policy.chat_template or None
        client.model = telling_tokens(client.model).model_copy(
            update={"chat_template_kwargs": template}
        )
        yield client, _push_to_server(settings, server, client, tokenizer, folder)


def _push_to_server(
    settings: TrainSettings, server: Server, client: ModelClient, tokenizer: Any, folder: Path
) -> WeightPush:
    def use(name: str) -> None:
        client.model = client.model.model_copy(update={"model_name": name})

    match push_of(settings):
        case "lora":
            return LoraPush(server, folder / PUSHED, use)
        case "disk":
            return DiskReload(server, folder / PUSHED)
    return NcclPush(server, tokenizer)
