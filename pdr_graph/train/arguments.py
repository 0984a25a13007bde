"""What TRL's trainer is told: the arguments that the objective decides, and those that users do."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pdr_graph.errors import ConfigError
from pdr_graph.train.plan import Schedule

try:
    import trl
    from accelerate import PartialState
    from trl import GRPOConfig, GRPOTrainer
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

TRL = "1.16"
"""The minor version that `trainer.py` was written for and is tested with."""
HOOKS = ("_save_checkpoint", "_get_output_dir", "_prepare_inputs", "_send_telemetry")
"""Methods without a public name that `trainer.py` overrides."""

_KEPT_OR_NOT = frozenset({"gradient_checkpointing", "activation_checkpointing"})


def _fields() -> frozenset[str]:
    return frozenset(each.name for each in fields(GRPOConfig))


def check_trl(version: str = trl.__version__, trainer: type = GRPOTrainer) -> None:
    """Refuse a TRL whose trainer may be another.

    Raises:
        ConfigError: it is of another minor version, or a hook is gone.
    """
    gone = [name for name in HOOKS if not hasattr(trainer, name)]
    if not version.startswith(f"{TRL}.") or gone:
        lacks = f", whose trainer has no {' and no '.join(gone)}" if gone else ""
        raise ConfigError(
            f"training is written for trl {TRL}, and {version} is installed{lacks}: "
            f"pip install 'trl=={TRL}.*'"
        )


def _scheduler(schedule: str, warmup_updates: int) -> str:
    # The library's `constant` leaves warm-up out, without a word.
    return "constant_with_warmup" if schedule == "constant" and warmup_updates else schedule


def training_arguments(
    folder: Path,
    schedule: Schedule,
    *,
    num_steps: int,
    updates_per_step: int = 1,
    rows_at_once: int = 8,
    learning_rate: float = 1e-6,
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = "constant",
    warmup_updates: int = 0,
    weight_decay: float = 0.0,
    beta2: float = 0.95,
    max_grad_norm: float = 1.0,
    temperature: float = 1.0,
    save_every: int = 0,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    cpu: bool = False,
    **more: Any,  # Any: whatever else GRPOConfig takes
) -> GRPOConfig:
    """Return the arguments of a run.

    Args:
        folder: Where checkpoints go.
        schedule: The data of every step.
        num_steps: Times that rollouts are collected.
        updates_per_step: Updates of the weights on the rows of a step.
        rows_at_once: Rows of a micro-batch on each rank; changes memory and nothing else.
        learning_rate: At its peak.
        learning_rate_schedule: How it falls after warm-up, over all updates.
        warmup_updates: Updates over which it rises from 0.
        weight_decay: AdamW's.
        beta2: AdamW's decay of the second moment.
        max_grad_norm: Bound on the gradient's norm; 0 does not clip.
        temperature: What rollouts are drawn at, above 0.
        save_every: Steps between checkpoints; 0 makes none.
        bf16: Whether the model computes in bfloat16.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        cpu: Whether to leave accelerators alone.
        more: Further arguments of `GRPOConfig`.

    Raises:
        ConfigError: the rows cannot be cut up evenly.
    """
    ranks = PartialState(cpu=cpu).num_processes
    rows = schedule.problems_per_step * schedule.num_rows
    if schedule.problems_per_step % ranks:
        raise ConfigError(
            f"{schedule.problems_per_step} problems a step cannot be shared out among {ranks} "
            f"processes; use a multiple of {ranks}"
        )
    accumulation, rest = divmod(rows, ranks * updates_per_step * rows_at_once)
    if rest or not accumulation:
        raise ConfigError(
            f"{rows} rows a step cannot be cut into {updates_per_step} updates of micro-batches "
            f"of {rows_at_once} on each of {ranks} processes; their product must divide the rows"
        )
    return GRPOConfig(
        **{
            "output_dir": str(folder),
            "max_steps": num_steps * updates_per_step,
            "num_generations": schedule.num_rows,
            "per_device_train_batch_size": rows_at_once,
            "gradient_accumulation_steps": accumulation,
            "steps_per_generation": accumulation * updates_per_step,
            "learning_rate": learning_rate,
            "lr_scheduler_type": _scheduler(learning_rate_schedule, warmup_updates),
            "warmup_steps": warmup_updates,
            "weight_decay": weight_decay,
            "adam_beta2": beta2,
            "max_grad_norm": max_grad_norm,
            "temperature": temperature,
            "save_strategy": "steps" if save_every else "no",
            "save_steps": max(1, save_every) * updates_per_step,
            "bf16": bf16,
            # Its newer name, without which the older one warns, is not known to all versions.
            **dict.fromkeys(_KEPT_OR_NOT & _fields(), gradient_checkpointing),
            "use_cpu": cpu,
            "seed": schedule.seed,
            # The objective's own: no reference model, no other regulariser, and the policy that is
            # trained is the one that drew.
            "loss_type": "cispo",
            "beta": 0.0,
            "disable_dropout": True,
            "ddp_find_unused_parameters": False,
            # What happens is handed out by `OperatorTrainer`, after every update.
            "logging_steps": 1,
            "report_to": [],
            "disable_tqdm": True,
            "log_level_replica": "error",  # as `quiet_libraries` has it on the main one
            "remove_unused_columns": False,
            **more,
        }
    )
