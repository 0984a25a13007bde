"""Checks that a run can work, before anything heavy is imported or anything is written.

Settings, files and problems must fit together, and so must what `accelerate launch` or `torchrun`
told this process: its rank and the number of ranks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pdr_graph.budget import TEMPLATE_TOKENS
from pdr_graph.errors import ConfigError, PDRError, counted
from pdr_graph.eval.problems import Problems, load_problems
from pdr_graph.train.estimate import (
    ModelShape,
    PromptSize,
    TrainEstimate,
    estimate,
    prompt_size,
    read_shape,
)
from pdr_graph.train.settings import PolicyKind, Push, TrainSettings
from pdr_graph.validation import Fault

PUSHES: Mapping[PolicyKind, tuple[Push, ...]] = {
    "transformers": ("none",),
    "vllm-colocate": ("colocate",),
    "vllm-http": ("lora", "disk"),
}
"""How weights may reach each policy."""

ONE_EACH = frozenset({"random_k", "top_k_per_sample"})
"""Distillers that make a workspace for each call that reads one."""


@dataclass(frozen=True, slots=True)
class PlannedRollouts:
    """The problems of a run's RL, and what they need."""

    problems: Problems
    size: PromptSize
    estimate: TrainEstimate


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run whose settings, files and problems fit together."""

    settings: TrainSettings
    shape: ModelShape
    rl: PlannedRollouts | None
    """None if the run ends after its warm start."""


def prepare(settings: TrainSettings) -> Prepared:
    """Read model and problems, and check the settings against them.

    Raises:
        ConfigError: something cannot work; one sentence names it and the remedy.
    """
    shape = read_shape(settings.model)
    check_settings(settings, shape)
    _check_template(settings.model)
    if not settings.steps:
        return Prepared(settings, shape, None)
    assert settings.data is not None  # `check_settings` saw to it
    problems = load_problems(settings.data).first(settings.limit)
    size = prompt_size(settings.model, settings.config, problems.problems)
    _check_problems(settings, shape, problems, size)
    return Prepared(
        settings, shape, PlannedRollouts(problems, size, estimate(settings, shape, size))
    )


def push_of(settings: TrainSettings) -> Push:
    """Return how weights reach the policy, `auto` resolved.

    Raises:
        ConfigError: the way does not fit the policy, or adapters.
    """
    policy, lora = settings.policy, settings.lora is not None
    fitting = PUSHES[policy.kind]
    if policy.push == "auto":
        return fitting[0] if lora else fitting[-1]
    if policy.push not in fitting:
        raise ConfigError(
            f"policy.push {policy.push!r} does not reach policy {policy.kind!r}; set "
            f"{' or '.join(map(repr, fitting))}, or 'auto'"
        )
    if policy.push == "lora" and not lora:
        raise ConfigError(
            "policy.push 'lora' sends adapters, and there are none; add the table [lora], or set "
            "policy.push 'disk'"
        )
    if policy.push == "disk" and lora:
        raise ConfigError(
            "policy.push 'disk' sends whole weights, and [lora] trains adapters; set policy.push "
            "'lora'"
        )
    return policy.push


def check_settings(settings: TrainSettings, shape: ModelShape) -> None:
    """Refuse settings that cannot work, whatever the problems are.

    Raises:
        ConfigError: one sentence names the setting, its value and what would do.
    """
    if settings.steps == 0 and settings.warm_start is None:
        raise ConfigError(
            "steps 0 leaves nothing to do without a warm start; set steps, or [warm_start] data"
        )
    if settings.warm_start is not None:
        _check_warm_start(settings)
    if settings.steps:
        _check_policy(settings, shape)
        _check_sampling(settings)
        _check_credits(settings)
        _check_division(settings)


def _check_template(folder: Path) -> None:
    """Refuse a tokenizer without a chat template."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return
    try:
        values = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        values = {}
    if not (isinstance(values, dict) and values.get("chat_template")):
        raise ConfigError(
            f"the tokenizer in {str(folder)!r} has no chat template; train an instruct model, or "
            "add chat_template.jinja"
        )


def _check_problems(
    settings: TrainSettings, shape: ModelShape, problems: Problems, size: PromptSize
) -> None:
    """Refuse too few problems for a step, and problems whose calls would not fit the window."""
    wanted, there = settings.rollouts.problems_per_step, len(problems.problems)
    if there < wanted:
        raise ConfigError(
            f"{problems.source!r} holds {counted(there, 'problem')}, and "
            f"rollouts.problems_per_step is {wanted}; lower it to {there} or less"
        )
    config = settings.config
    kappa = config.kappa if settings.rollouts.operator_fraction else 0
    prompt = size.refine if kappa else size.direct
    # Before it begins, a run charges the template's words at a fixed length.
    needed = max(prompt, size.problem + kappa + TEMPLATE_TOKENS) + config.max_tokens
    # If lengths are only estimated, it is for the server or the model to refuse.
    if size.exact and shape.window is not None and needed > shape.window:
        raise ConfigError(
            f"a call needs up to {needed} tokens (problem {size.problem}, strategy.kappa {kappa}, "
            f"strategy.max_tokens {config.max_tokens}, and the words around them) and the model's "
            f"window is {shape.window}; lower strategy.max_tokens or strategy.kappa"
        )


def _check_warm_start(settings: TrainSettings) -> None:
    warm = settings.warm_start
    assert warm is not None
    if not warm.data.is_file():
        raise ConfigError(
            f"warm-start data {str(warm.data)!r} is no file; `pdr-graph train-data RUN --out "
            f"{warm.data}` makes it"
        )
    chunk = warm.micro_batch_rows * settings.devices.processes
    if warm.batch_rows % chunk:
        raise ConfigError(
            f"warm_start.batch_rows {warm.batch_rows} is no multiple of {chunk} "
            f"(micro_batch_rows {warm.micro_batch_rows} on {settings.devices.processes} "
            f"processes); use {_next_multiple(warm.batch_rows, chunk)}"
        )


def _check_policy(settings: TrainSettings, shape: ModelShape) -> None:
    policy = settings.policy
    if push_of(settings) == "disk" and shape.tied:
        raise ConfigError(
            f"policy.push 'disk' reloads {shape.kind or 'the model'} without its head, which is "
            "tied to the embedding: every call would answer by old weights; train adapters by "
            "[lora], or set policy.kind 'vllm-colocate'"
        )
    if policy.kind == "vllm-http" and policy.base_url is None:
        raise ConfigError(
            "policy 'vllm-http' needs the server's address; set policy.base_url, or --base-url "
            "http://HOST:PORT/v1"
        )
    if policy.kind != "vllm-http" and policy.base_url is not None:
        raise ConfigError(
            f"policy.base_url {policy.base_url!r} is for policy 'vllm-http', and policy.kind is "
            f"{policy.kind!r}; leave one of them out"
        )
    if policy.kind == "vllm-colocate" and settings.devices.processes > 1:
        raise ConfigError(
            f"policy 'vllm-colocate' runs in one process, and devices.processes is "
            f"{settings.devices.processes}; set policy.kind 'vllm-http'"
        )
    if settings.devices.sharded:
        raise ConfigError(
            "devices.sharded spreads the weights, and RL hands over those of one process; set "
            "steps 0 for a warm start alone, or train adapters by [lora] without sharding"
        )


def _check_sampling(settings: TrainSettings) -> None:
    config = settings.config
    if config.top_p != 1.0:
        raise ConfigError(
            f"strategy.top_p {config.top_p:g}: training draws from the whole distribution; set 1"
        )
    if config.temperature == 0.0:
        raise ConfigError("strategy.temperature 0: training needs samples that differ; set 1")
    if settings.data is None:
        raise ConfigError(
            "no problems are named; set data in the file, or --data SOURCE (a file of JSON lines, "
            "reasoning-gym:TASK or hf:ORG/NAME:SPLIT)"
        )


def _check_credits(settings: TrainSettings) -> None:
    """Refuse credits that make no sense if all refinements share a workspace."""
    if settings.operator_plan.kind != "workspace":
        return
    if settings.objective.draft_credit == "outcome":
        raise ConfigError(
            "objective.draft_credit 'outcome' does not tell apart the drafts of one workspace; set "
            "'own' or 'none', or rollouts.operator_plan 'rounds'"
        )
    if settings.config.distiller in ONE_EACH:
        raise ConfigError(
            f"strategy.distiller {settings.config.distiller!r} makes a workspace for each "
            "refinement, and plan 'workspace' compares refinements of one; leave it out, or set "
            "rollouts.operator_plan 'rounds'"
        )


def _check_division(settings: TrainSettings) -> None:
    """Refuse rows that do not split evenly into processes, updates and micro-batches."""
    rollouts, optimiser = settings.rollouts, settings.optimiser
    problems, processes = rollouts.problems_per_step, settings.devices.processes
    if problems % processes:
        raise ConfigError(
            f"rollouts.problems_per_step {problems} cannot be spread over {processes} processes; "
            f"use {_next_multiple(problems, processes)}"
        )
    rows = settings.rows_per_step // processes
    if rows % optimiser.updates_per_step:
        raise ConfigError(
            f"optimiser.updates_per_step {optimiser.updates_per_step} does not divide the {rows} "
            f"rows that a process has in a step ({problems} problems of "
            f"{rollouts.rows_per_problem} rows on {processes} processes); use a divisor of {rows}"
        )
    rows //= optimiser.updates_per_step
    if rows % optimiser.micro_batch_rows:
        fitting = max(n for n in range(1, optimiser.micro_batch_rows + 1) if rows % n == 0)
        raise ConfigError(
            f"optimiser.micro_batch_rows {optimiser.micro_batch_rows} does not divide the {rows} "
            f"rows that a process has in an update; use {fitting}"
        )


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


class Launch(BaseSettings):
    """The launcher's variables, `WORLD_SIZE` and so on; without them there is one process."""

    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore")

    world_size: int = Field(1, ge=1)
    rank: int = Field(0, ge=0)
    accelerate_use_fsdp: bool = False
    accelerate_use_deepspeed: bool = False
    accelerate_mixed_precision: str | None = None
    """None without `accelerate launch`, which always sets it."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


class RankError(PDRError, RuntimeError):
    """Another rank failed, or the main one reports the failure of this one."""


class LostRankError(PDRError, ConnectionError):
    """Another rank ended without reporting why."""

    def __init__(self) -> None:
        super().__init__(
            "another process of the run has ended, or cannot be reached any more; the launcher "
            "says which, and what ended it"
        )


def read_launch() -> Launch:
    """Read what the launcher set.

    Raises:
        ConfigError: a variable is malformed.
    """
    try:
        return Launch()
    except ValidationError as error:
        fault = Fault.of(error)
        raise ConfigError(
            f"{fault.sentence(fault.name.upper())}; it is set by `accelerate launch`"
        ) from None


def check_launch(launch: Launch, settings: TrainSettings) -> None:
    """Refuse a number of processes, or a sharding, other than the settings'.

    Raises:
        ConfigError: the sentence has the command or the setting that fits.
    """
    asked = settings.devices.processes
    if launch.world_size != asked:
        started = "1 was" if launch.world_size == 1 else f"{launch.world_size} were"
        words = f"accelerate launch --num_processes {asked}"
        why = "; use"
        if launch.world_size == 1 and launch.accelerate_mixed_precision is not None:
            # It says nothing about it.
            words = f"torchrun --nproc_per_node {asked}"
            why = ": `accelerate launch` starts no more with --cpu, or without a second GPU; use"
        raise ConfigError(
            f"devices.processes is {asked} and {started} started{why} `{words} -m pdr_graph.cli "
            f"train …`, or set devices.processes {launch.world_size}"
        )
    if launch.accelerate_use_deepspeed:
        raise ConfigError(
            "the launcher uses DeepSpeed, which training does not support; use `accelerate launch "
            "--multi_gpu …`, or for a warm start alone `--use_fsdp`"
        )
    if settings.devices.sharded and not launch.accelerate_use_fsdp:
        raise ConfigError(
            "devices.sharded needs FSDP: `accelerate launch --use_fsdp …`, or a file of "
            "`accelerate config`"
        )
    if launch.accelerate_use_fsdp and not settings.devices.sharded:
        raise ConfigError(
            "the launcher shards the model by FSDP and devices.sharded is false; set "
            "devices.sharded true"
        )
