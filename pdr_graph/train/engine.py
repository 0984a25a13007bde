"""Opens the policy that draws the rollouts, and the way by which new weights reach it."""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdr_graph.budget import CANDIDATE_TOKENS, TEMPLATE_TOKENS
from pdr_graph.connect import key_of, open_client
from pdr_graph.errors import ConfigError, install_command
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.chat_vllm import ChatVLLM
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.endpoint import probe_endpoint
from pdr_graph.llm.pool import make_http_client
from pdr_graph.policy import Policy
from pdr_graph.policy.chat import policy_client
from pdr_graph.policy.transformers_policy import TransformersPolicy
from pdr_graph.settings import load_settings
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.preparation import PlannedRollouts, Prepared, push_of
from pdr_graph.train.push import (
    LORA_NEEDS,
    ColocatePush,
    DiskReload,
    InProcess,
    LoraPush,
    VLLMAdmin,
    WeightPush,
)
from pdr_graph.train.recorder import telling_tokens
from pdr_graph.train.rollouts import Collect, Collector, Rollouts, keep
from pdr_graph.train.settings import TrainSettings

try:
    from accelerate import PartialState
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

MARGIN = 64
"""Tokens of room beyond the longest call that was counted."""
PUSHED = "pushed"
"""Folder of a run in which a server finds new weights."""
_ADAPTER = re.compile(r"policy-\d+-[0-9a-f]{8}")
"""Names that `LoraPush` gives."""


@dataclass(frozen=True, slots=True)
class OpenPolicy:
    """A policy that is ready to draw."""

    collect: Collect
    push: WeightPush


@contextmanager
def open_policy(
    prepared: Prepared,
    model: Any,  # Any: a transformers model, or one with an adapter
    tokenizer: Any,  # Any: transformers' tokenizer
    folder: Path,
) -> Iterator[OpenPolicy]:
    """Open the policy of a run for as long as the block lasts.

    Args:
        prepared: The run.
        model: The model that is trained.
        tokenizer: Its tokenizer.
        folder: Of the run.

    Raises:
        ConfigError: a package is missing that the policy needs.
        EndpointError: no server answers.
    """
    settings, rl = prepared.settings, prepared.rl
    assert rl is not None  # else nothing is drawn
    # One event loop for the whole run: connections outlive a step.
    with asyncio.Runner() as runner:
        opened = _opened(prepared, model, tokenizer, folder)
        client, push = runner.run(opened.__aenter__())
        judge = Judge.of_kind(settings.config.answer, rl.problems.score)
        collector = Collector(client, judge, settings)

        def collect(
            problems: Sequence[Problem],
            plans: Sequence[ProblemPlan],
            *,
            seed: int,
            policy_version: int,
        ) -> Rollouts:
            rollouts = runner.run(
                collector.collect(problems, plans, seed=seed, policy_version=policy_version)
            )
            if settings.rollouts.record:
                keep(folder, rollouts.trajectories)
            return rollouts

        try:
            yield OpenPolicy(collect, push)
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
        async with _served(settings, folder) as served:
            yield served
        return
    own: Policy = TransformersPolicy(model, tokenizer, most_rows=policy.max_in_flight)
    push: WeightPush = InProcess()
    if policy.kind == "vllm-colocate":
        own, push = _engine_beside(prepared)
    client = policy_client(
        own, tokenizer, name=settings.model.name, chat_template_kwargs=policy.chat_template
    )
    yield client, push


def _engine_beside(prepared: Prepared) -> tuple[Policy, WeightPush]:
    """Start vLLM in this process, on a share of its device.

    Raises:
        ConfigError: vLLM is not installed, or cannot run the model here.
    """
    settings, rl = prepared.settings, prepared.rl
    assert rl is not None  # else nothing is drawn
    # Weights are handed over in memory; vLLM reads this when it is imported.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from pdr_graph.policy.vllm_policy import VLLMPolicy, open_engine

    engine = open_engine(
        settings.model,
        gpu_memory_utilization=settings.policy.gpu_memory_share,
        max_num_seqs=settings.policy.max_in_flight,
        max_model_len=longest_call(settings, rl, prepared.shape.window),
        seed=settings.seed,
    )
    return VLLMPolicy(engine), ColocatePush(engine)


def longest_call(settings: TrainSettings, rl: PlannedRollouts, window: int | None) -> int | None:
    """Return how many tokens prompt and reply may have; None is the model's window.

    More than is needed would take memory from the cache. If prompts are only estimated, the window
    is used.
    """
    if not rl.size.exact:
        return None
    config = settings.config
    candidates = settings.rollouts.num_drafts * (config.solution_tokens + CANDIDATE_TOKENS)
    charged = rl.size.problem + config.kappa + TEMPLATE_TOKENS
    prompt = max(rl.size.refine, rl.size.direct + candidates, charged)
    needed = prompt + config.max_tokens + MARGIN
    return needed if window is None else min(needed, window)


@asynccontextmanager
async def _served(
    settings: TrainSettings, folder: Path
) -> AsyncIterator[tuple[ModelClient, WeightPush]]:
    policy, push = settings.policy, push_of(settings)
    # Read with its address, so that a key goes only to its own server.
    key = key_of(load_settings(base_url=policy.base_url), str(policy.base_url))
    server = VLLMAdmin(str(policy.base_url), key)
    if PartialState().is_main_process and push == "lora":
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

        def use(name: str) -> None:
            client.model = client.model.model_copy(update={"model_name": name})

        if push == "lora":
            yield client, LoraPush(server, folder / PUSHED, use)
        else:
            yield client, DiskReload(server, folder / PUSHED)


async def base_model(server: VLLMAdmin) -> str:
    """Return the name of the one model that a server has, leaving out our adapters.

    Raises:
        EndpointError: no server answers.
        ConfigError: the server has several.
    """
    models = await _models(server)
    own = [name for name in models if not _ADAPTER.fullmatch(name)]
    if len(own) != 1:
        raise ConfigError(
            f"{server.base_url} serves {len(own)} models ({', '.join(own) or 'none'}); name the "
            "one that is trained by policy.served_model"
        )
    return own[0]


async def forget_adapters(server: VLLMAdmin) -> None:
    """Unload the adapters of a run that was killed.

    Raises:
        EndpointError: no server answers.
        PushError: the server does not unload one.
    """
    for name in await _models(server):
        if _ADAPTER.fullmatch(name):
            server.post("/v1/unload_lora_adapter", {"lora_name": name}, needs=LORA_NEEDS)


async def _models(server: VLLMAdmin) -> tuple[str, ...]:
    http = make_http_client()
    try:
        info = await probe_endpoint(http, server.base_url, api_key=server.api_key or "EMPTY")
    finally:
        await http.aclose()
    return info.models
