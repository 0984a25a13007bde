"""Opens the policy that draws the rollouts, and the way by which new weights reach it.

Starts vLLM in the trainer's process, on a share of its device.

The model that a server was started with, apart from adapters that a killed run left there.
"""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from pdr_graph.budget import CANDIDATE_TOKENS, TEMPLATE_TOKENS
from pdr_graph.connect import open_client
from pdr_graph.errors import ConfigError
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.policy.chat import policy_client
from pdr_graph.policy.policy import Policy
from pdr_graph.policy.transformers_policy import TransformersPolicy
from pdr_graph.settings import load_settings
from pdr_graph.train.advantage import TrainRow
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.preparation import PlannedRollouts, Prepared, push_of
from pdr_graph.train.push import (
    LORA_NEEDS,
    DiskReload,
    InProcess,
    LoraPush,
    NcclPush,
    VLLMAdmin,
    WeightPush,
)
from pdr_graph.train.recorder import telling_tokens
from pdr_graph.train.rollouts import Collector, keep
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.trajectory import Trajectory

MARGIN = 64
"""Tokens of room beyond the longest call that was counted."""


def engine_beside(prepared: Prepared) -> tuple[Policy, WeightPush]:
    """Start an engine, and return it as a policy with the way to push weights to it.

    Raises:
        ConfigError: vLLM is not installed, or cannot run the model here.
    """
    settings, rl = prepared.settings, prepared.rl
    assert rl is not None  # else nothing is drawn
    # Weights are handed over in memory; vLLM reads this when it is imported.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from pdr_graph.policy.vllm_policy import VLLMPolicy, open_engine
    from pdr_graph.train.colocate import ColocatePush

    options: dict[str, Any] = {  # Any: vLLM's own options
        "gpu_memory_utilization": settings.policy.gpu_memory_share,
        "max_num_seqs": settings.policy.max_in_flight,
        "max_model_len": longest_call(settings, rl, prepared.shape.window),
        "seed": settings.seed,
    }
    if settings.devices.processes > 1:
        # Each rank has an engine of its own on its own device.
        options["distributed_executor_backend"] = "external_launcher"
    engine = open_engine(settings.model, **options)
    return VLLMPolicy(engine), ColocatePush(engine)


def longest_call(settings: TrainSettings, rl: PlannedRollouts, window: int | None) -> int | None:
    """Return how many tokens prompt and reply may have; None is the model's window.

    What is not needed would be taken from the cache. Where prompts are only estimated, the window
    is what is safe.
    """
    if not rl.size.exact:
        return None
    config = settings.config
    candidates = settings.rollouts.num_drafts * (config.solution_tokens + CANDIDATE_TOKENS)
    charged = rl.size.problem + config.kappa + TEMPLATE_TOKENS
    prompt = max(rl.size.refine, rl.size.direct + candidates, charged)
    needed = prompt + config.max_tokens + MARGIN
    return needed if window is None else min(needed, window)


_PUSHED = re.compile(r"policy-\d+-[0-9a-f]{8}")
"""As `LoraPush` names them."""


async def base_model(server: VLLMAdmin) -> str:
    """Return the name of the one model that a server has but for adapters of ours.

    Raises:
        EndpointError: no server answers.
        ConfigError: it serves several.
    """
    models = await _models(server)
    own = [name for name in models if not _PUSHED.fullmatch(name)]
    if len(own) != 1:
        raise ConfigError(
            f"{server.base_url} serves {len(own)} models ({', '.join(own) or 'none'}); name the "
            "one that is trained by policy.served_model"
        )
    return own[0]


async def forget_adapters(server: VLLMAdmin) -> None:
    """Take adapters from a server that a run which was killed could not take back.

    Raises:
        EndpointError: no server answers.
        PushError: it does not let go of one.
    """
    for name in await _models(server):
        if _PUSHED.fullmatch(name):
            server.post("/v1/unload_lora_adapter", {"lora_name": name}, needs=LORA_NEEDS)


async def _models(server: VLLMAdmin) -> tuple[str, ...]:
    http = make_http_client()
    try:
        info = await probe_endpoint(http, server.base_url, api_key=server.api_key or "EMPTY")
    finally:
        await http.aclose()
    return info.models


PUSHED = "pushed"
"""Folder of a run in which a server finds new weights."""


@dataclass(frozen=True, slots=True)
class DrawingEngine:
    """The rollouts of some problems, as the trainer takes them."""

    trajectories: Sequence[Trajectory]
    rows: Sequence[Sequence[TrainRow]]
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
        self,
        problems: Sequence[Problem],
        plans: Sequence[ProblemPlan],
        *,
        seed: int,
        policy_version: int,
    ) -> DrawingEngine:
        """Draw the rollouts of some problems."""
        rollouts = self.runner.run(
            self.collector.collect(problems, plans, seed=seed, policy_version=policy_version)
        )
        if self.record is not None:
            keep(self.record, rollouts.trajectories)
        return DrawingEngine(rollouts.trajectories, [each.rows for each in rollouts.problems])


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
    server = VLLMAdmin(str(policy.base_url), key.get_secret_value())
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
    settings: TrainSettings, server: VLLMAdmin, client: ModelClient, tokenizer: Any, folder: Path
) -> WeightPush:
    def use(name: str) -> None:
        client.model = client.model.model_copy(update={"model_name": name})

    match push_of(settings):
        case "lora":
            return LoraPush(server, folder / PUSHED, use)
        case "disk":
            return DiskReload(server, folder / PUSHED)
    return NcclPush(server, tokenizer)
