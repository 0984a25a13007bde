"""Supervised training before RL, or alone: TRL's SFTTrainer on what a reply holds.

The loss is of the completion's tokens alone. A run that was killed goes on from its last
checkpoint with the rows that it would have had.

The rows of a warm start: conversations, as `supervised.py` writes them.

A line: `{"prompt": [{"role": "user", "content": "What is 6 x 7?"}],
"completion": [{"role": "assistant", "content": "42"}]}`; any other field is left aside.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from pdr_graph.errors import ConfigError
from pdr_graph.train.checkpoint import (
    keep_last,
    last_checkpoint,
    publish,
    staging,
    sweep,
    update_of,
)

Conversation = dict[str, list[dict[str, str]]]
"""`prompt` and `completion`, each a list of messages."""

_SHOWN = 40
"""Characters of a prompt's end in a message."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What there is to learn from."""

    conversations: list[Conversation]
    too_long: int
    """Rows that were left out."""


def read_conversations(file: Path) -> list[Conversation]:
    """Read a file of `pdr-graph train-data`.

    Raises:
        ConfigError: it cannot be read, or a line is none; the sentence names the line.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(
            f"warm-start data {str(file)!r} cannot be read: {error.strerror}"
        ) from None
    rows = [
        _conversation(line, f"{file} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise ConfigError(f"warm-start data {str(file)!r} holds no rows")
    return rows


def _conversation(line: bytes, where: str) -> Conversation:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no JSON object")
    for name in ("prompt", "completion"):
        turns = row.get(name)
        if not (isinstance(turns, list) and turns and all(map(_is_turn, turns))):
            raise ConfigError(
                f'{where}: {name!r} is no list of messages {{"role": …, "content": …}}; '
                "`pdr-graph train-data` writes such files"
            )
    return {"prompt": row["prompt"], "completion": row["completion"]}


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
    )


def fitting(
    conversations: list[Conversation],
    tokenizer: Any,  # Any: transformers has no types
    most: int,
    variables: Mapping[str, Any] = MappingProxyType({}),  # Any: the template's own
) -> Rows:
    """Leave out the rows of more than `most` tokens, as the chat template writes them.

    Raises:
        ConfigError: none is left, or the template does not write rows as the model is asked.
    """
    _refuse_rewritten(conversations, tokenizer, variables)
    kept = [each for each in conversations if _length(each, tokenizer, variables) <= most]
    if not kept:
        raise ConfigError(
            f"every one of {len(conversations)} warm-start rows has more than {most} tokens; raise "
            "warm_start.max_tokens, or make shorter rows"
        )
    return Rows(kept, len(conversations) - len(kept))


def _length(conversation: Conversation, tokenizer: Any, variables: Mapping[str, Any]) -> int:
    text = _whole(conversation, tokenizer, variables)
    return len(tokenizer.encode(text, add_special_tokens=False))


def _whole(conversation: Conversation, tokenizer: Any, variables: Mapping[str, Any]) -> str:
    turns = [*conversation["prompt"], *conversation["completion"]]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, **variables)
    return text


def _refuse_rewritten(
    conversations: list[Conversation], tokenizer: Any, variables: Mapping[str, Any]
) -> None:
    """Refuse a template by which less, or something else, is learnt than what was said.

    TRL learns what follows the prompt, as far as the whole row begins with it. Templates that are
    made for chat rewrite the assistant's turns: they leave thoughts out, or end a prompt by the
    opening of a thought.

    Raises:
        ConfigError: it does; the sentence has the first such row, and how many there are.
    """
    left_out, otherwise = [], []
    for number, row in enumerate(conversations, start=1):
        whole = _whole(row, tokenizer, variables)
        prompt: str = tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True, **variables
        )
        if not whole.startswith(prompt):
            otherwise.append((number, prompt))
        elif not all(_solid(each["content"]) in _solid(whole) for each in row["completion"]):
            left_out.append(number)
    if otherwise:
        number, prompt = otherwise[0]
        raise ConfigError(
            f"the chat template writes the prompt of warm-start row {number} in another way when "
            f"its reply follows ({len(otherwise)} of {len(conversations)} rows): the model is "
            f"asked by {prompt[-_SHOWN:]!r} and would not learn to go on from there; change the "
            "model folder's template so that what follows the prompt is the reply, word for word"
        )
    if left_out:
        raise ConfigError(
            f"the chat template leaves out a part of the reply of warm-start row {left_out[0]} "
            f"({len(left_out)} of {len(conversations)} rows), which would not be learnt; make data "
            "without thoughts (`pdr-graph train-data --no-thoughts`), or change the model folder's "
            "template"
        )


def _solid(text: str) -> str:
    """Return a text without its blanks, which templates trim and add."""
    return "".join(text.split())


try:
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback
    from trl import SFTConfig, SFTTrainer
except ImportError:
    raise ConfigError("training needs torch: pip install 'pdr-graph[train]'") from None


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
