"""Starts vLLM in the trainer's process, on a share of its device."""

import os
from typing import Any

from pdr_graph.budget import CANDIDATE_TOKENS, TEMPLATE_TOKENS
from pdr_graph.policy.policy import Policy
from pdr_graph.train.preparation import Prepared, Rollouts
from pdr_graph.train.push.protocol import WeightPush
from pdr_graph.train.settings import TrainSettings

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
    from pdr_graph.train.push.colocate import ColocatePush

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


def longest_call(settings: TrainSettings, rl: Rollouts, window: int | None) -> int | None:
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
