"""Supervised training before RL, or alone: TRL's SFTTrainer on recorded replies.

Only the tokens of the completion are learnt. A run that was killed goes on from its last checkpoint
with the rows that it would have had. Its data are conversations, as `supervised.py` writes them::

    {"prompt": [{"role": "user", "content": "What is 6 x 7?"}],
     "completion": [{"role": "assistant", "content": "42"}]}

Other fields of a line are ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.files import json_object
from pdr_graph.train.models import (
    OnUpdate,
    WholeCheckpoints,
    last_checkpoint,
    shared_arguments,
    sweep,
    writable,
)
from pdr_graph.train.settings import TrainSettings

try:
    from datasets import Dataset
    from huggingface_hub import constants
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

Conversation = dict[str, list[dict[str, str]]]
"""`prompt` and `completion`, each a list of messages."""

_SHOWN = 40
"""Characters of a prompt's end in a message."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Conversations to learn from."""

    conversations: list[Conversation]
    too_long: int
    """Number of rows that were left out."""


def read_conversations(file: Path) -> list[Conversation]:
    """Read a file of `pdr-graph train-data`.

    Raises:
        ConfigError: it cannot be read, or a line is no conversation.
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
    row = json_object(line, where, "`pdr-graph train-data` writes such files")
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
        ConfigError: no row is left, or the template rewrites rows.
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
    """Refuse a template that drops or changes a part of the replies to learn.

    TRL learns what follows the prompt, if the whole row begins with the prompt. Some chat templates
    rewrite the assistant's turns: they drop thoughts, or end a prompt by the opening of a thought.
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
    """Return a text without white space, which templates trim and add."""
    return "".join(text.split())


class WarmStartTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """Trains on conversations."""

    def __init__(
        self,
        model: Any,  # Any: a transformers model, or one with an adapter
        tokenizer: Any,  # Any: transformers' tokenizer
        rows: Rows,
        settings: TrainSettings,
        folder: Path,
        *,
        on_update: OnUpdate | None = None,
    ) -> None:
        """Make a trainer; `go_on()` runs it.

        Args:
            model: In memory; of one with an adapter of peft's, only the adapter is trained.
            tokenizer: Its tokenizer.
            rows: What is learnt.
            settings: Of the run; they have a warm start.
            folder: Where checkpoints go.
            on_update: Receives the figures of every update.
        """
        # Otherwise TRL reports each new trainer to its authors.
        constants.HF_HUB_DISABLE_TELEMETRY = True
        variables = settings.policy.chat_template
        column = {"chat_template_kwargs": dict(variables)} if variables else {}
        super().__init__(
            model,
            args=_arguments(settings, folder),
            train_dataset=Dataset.from_list([{**row, **column} for row in rows.conversations]),
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)
        if on_update is not None:
            self.add_callback(_Telling(on_update))
        self.add_callback(WholeCheckpoints(folder, settings.keep_checkpoints, self.accelerator))
        self._folder = folder

    @property
    def num_updates(self) -> int:
        """Return the updates of the whole warm start."""
        batches = len(self.get_train_dataloader())
        each: int = math.ceil(batches / self.args.gradient_accumulation_steps)
        epochs: float = self.args.num_train_epochs
        return math.ceil(epochs * each)

    def go_on(self) -> int:
        """Train to the end, from the last checkpoint if there is one; return the updates made.

        A run that was asked to stop returns before its end, with a checkpoint.

        Raises:
            ConfigError: the disk takes no further checkpoint.
        """
        if self.accelerator.is_main_process:
            sweep(self._folder)
        self.accelerator.wait_for_everyone()
        last = last_checkpoint(self._folder)
        with writable(self._folder):
            self.train(resume_from_checkpoint=last and str(last))
        return int(self.state.global_step)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none into checkpoints; `session.py` makes the trained model's."""


def _arguments(settings: TrainSettings, folder: Path) -> SFTConfig:
    warm = settings.warm_start
    assert warm is not None
    rows_at_once = warm.micro_batch_rows * settings.devices.processes
    return SFTConfig(
        **shared_arguments(settings, folder),
        num_train_epochs=warm.epochs,
        per_device_train_batch_size=warm.micro_batch_rows,
        gradient_accumulation_steps=warm.batch_rows // rows_at_once,
        learning_rate=warm.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warm.warmup_share,
        save_steps=warm.save_every,
        completion_only_loss=True,
        max_length=None,
        packing=False,
    )


class _Telling(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Hands out the figures of each update."""

    def __init__(self, tell: OnUpdate) -> None:
        self._tell = tell

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Hand out what was logged, on the main process."""
        logs = more.get("logs") or {}
        if "loss" in logs and state.is_world_process_zero:
            # `num_tokens` starts again in a process that resumes.
            logs = {name: value for name, value in logs.items() if name != "num_tokens"}
            self._tell(int(state.global_step), logs)
