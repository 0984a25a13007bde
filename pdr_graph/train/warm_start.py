"""Supervised training before RL, or alone: TRL's SFTTrainer on what a reply holds.

The loss is of the completion's tokens alone. A run that was killed goes on from its last
checkpoint with the rows that it would have had.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.train.conversations import Rows
from pdr_graph.train.saving import keep_last, last_checkpoint, publish, staging, sweep, update_of

try:
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None

from torch import nn


class WarmStartTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """Trains on conversations, with checkpoints that are there whole or not at all."""

    def __init__(
        self,
        model: Any,  # Any: a transformers model, or one with an adapter
        tokenizer: Any,  # Any: transformers' tokenizer
        rows: Rows,
        arguments: SFTConfig,
        *,
        variables: Mapping[str, Any] = MappingProxyType({}),  # Any: the template's own
        keep: int = 2,
        on_update: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        """Make a trainer.

        Args:
            model: In memory; with an adapter of peft's, only that is trained.
            tokenizer: Its tokenizer.
            rows: What is learnt.
            arguments: By `warm_start_arguments`.
            variables: Of the chat template, the same for every row.
            keep: Checkpoints that are kept, the newest.
            on_update: Receives an update's number and figures, on the main process.
        """
        super().__init__(
            model,
            args=arguments,
            train_dataset=Dataset.from_list(
                [{**row, **_by(variables)} for row in rows.conversations]
            ),
            processing_class=tokenizer,
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        if on_update is not None:
            self.add_callback(_Telling(on_update))
        self._keep = keep
        self._folder = Path(arguments.output_dir)
        self._output_dir = self._folder

    @property
    def num_updates(self) -> int:
        """Return the updates of the whole warm start."""
        batches = len(self.get_train_dataloader())
        each: int = math.ceil(batches / self.args.gradient_accumulation_steps)
        epochs: float = self.args.num_train_epochs
        return math.ceil(epochs * each)

    def go_on(self) -> int:
        """Train to the end, from the last checkpoint if there is one; returns the updates made.

        A run that was asked to stop returns before its end, with a checkpoint.
        """
        main = self.accelerator.is_main_process
        if main:
            sweep(self._folder)
        self.accelerator.wait_for_everyone()
        last = last_checkpoint(self._folder)
        self.train(resume_from_checkpoint=None if last is None else str(last))
        return int(self.state.global_step)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: what a run is, its own files say."""

    def _send_telemetry(self) -> None:
        """Send none."""

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, and move it there when all ranks are done."""
        update, main = self.state.global_step, self.accelerator.is_main_process
        self._output_dir = staging(self._folder, update)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            written = self._output_dir / f"checkpoint-{update}"
            self._output_dir = self._folder
        self.accelerator.wait_for_everyone()
        if main:
            publish(written, self._folder)
            written.parent.rmdir()
            keep_last(self._folder, self._keep)
        self.accelerator.wait_for_everyone()


def begun_at(folder: Path) -> int:
    """Return how many updates the last checkpoint of a warm start has behind it."""
    last = last_checkpoint(folder)
    return 0 if last is None else update_of(last)


def warm_start_arguments(
    folder: Path,
    *,
    epochs: float,
    rows_at_once: int,
    accumulation: int,
    learning_rate: float,
    warmup_share: float,
    save_every: int,
    seed: int,
    bf16: bool,
    gradient_checkpointing: bool,
    cpu: bool,
) -> SFTConfig:
    """Return what TRL's trainer is told.

    Args:
        folder: Where checkpoints go.
        epochs: Passes over the rows.
        rows_at_once: Rows of a micro-batch on each rank.
        accumulation: Micro-batches of an update.
        learning_rate: At its peak; it falls linearly to 0.
        warmup_share: Share of the updates over which it rises.
        save_every: Updates between checkpoints.
        seed: Of the order of rows.
        bf16: Whether the model computes in bfloat16.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        cpu: Whether to leave accelerators alone.
    """
    return SFTConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=accumulation,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_share,
        save_strategy="steps",
        save_steps=save_every,
        seed=seed,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        use_cpu=cpu,
        completion_only_loss=True,
        max_length=None,
        packing=False,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        log_level_replica="error",  # as `quiet_libraries` has it on the main one
        ddp_find_unused_parameters=False,
    )


def _by(variables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the column from which TRL takes a row's variables; none without any."""
    return {"chat_template_kwargs": dict(variables)} if variables else {}


class _Telling(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Hands out the figures of each update."""

    def __init__(self, tell: Callable[[int, Mapping[str, float]], None]) -> None:
        self._tell = tell

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Hand out what was logged, on the main process."""
        logs = more.get("logs") or {}
        if "loss" in logs and state.is_world_process_zero:
            # This one begins anew in a process that goes on.
            logs = {name: value for name, value in logs.items() if name != "num_tokens"}
            self._tell(int(state.global_step), logs)
