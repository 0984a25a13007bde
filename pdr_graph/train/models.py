"""The model that is trained: opened, kept in checkpoints, written at the end.

A model whose weights are all trained is in fp32, whatever it computes in. Under adapters the base
is in bf16 if that is asked for, and the adapters are in fp32. The libraries below are set up here.

A checkpoint in the folder of a run is complete or absent. transformers writes it into `.saving/`;
it is then synced to the disk and renamed to its place. One that is not needed any more is renamed
before it is deleted. So a process that is killed at any moment leaves every `checkpoint-N`
complete.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.policy.folder import refuse_missing, tokenizer_of
from pdr_graph.train.ranks import together
from pdr_graph.train.settings import LoraSettings, TrainSettings

try:
    import torch
    import transformers
    from accelerate import Accelerator
    from datasets import disable_progress_bars
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors import SafetensorError
    from transformers import (
        AutoModelForCausalLM,
        Trainer,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
        set_seed,
    )
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

OnUpdate = Callable[[int, Mapping[str, float]], None]
"""Receives the number of an update and its figures, on the main process."""


def quiet_libraries() -> None:
    """Keep the libraries' bars and warnings off the terminal; ours say what happens."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()


def uses_cpu() -> bool:
    """Return whether there is no accelerator to train on."""
    return not torch.accelerator.is_available()


def shared_arguments(settings: TrainSettings, folder: Path) -> dict[str, Any]:
    """Return the arguments that the trainers of RL and of a warm start have in common.

    Args:
        settings: Of the run.
        folder: Where checkpoints go.
    """
    # transformers renamed it: the old name warns in new versions, the new one is unknown to old.
    names = {"gradient_checkpointing", "activation_checkpointing"}
    known = names & TrainingArguments.__dataclass_fields__.keys()
    return {
        "output_dir": str(staging(folder)),
        "save_strategy": "steps",
        "seed": settings.seed,
        "bf16": settings.devices.precision == "bf16",
        **dict.fromkeys(known, settings.optimiser.gradient_checkpointing),
        "use_cpu": uses_cpu(),
        "ddp_find_unused_parameters": False,
        # Figures are handed out by `OnUpdate`.
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "log_level_replica": "error",  # as `quiet_libraries` sets it on the main one
    }


def open_tokenizer(folder: Path) -> Any:  # Any: transformers has no types
    """Open the tokenizer of a model folder; without a padding token the end token pads.

    Raises:
        ConfigError: it cannot be opened.
    """
    try:
        tokenizer = tokenizer_of(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(_broken("tokenizer", folder, error)) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def open_model(settings: TrainSettings, start: Path) -> Any:  # Any: as above
    """Open the model to train.

    Args:
        settings: Of the run; its seed draws a fresh adapter.
        start: Folder to start from: a whole model, or the adapter of a warm start.

    Raises:
        ConfigError: the model cannot be opened, weights are missing, or it is to be sharded over
            CPUs.
    """
    if settings.devices.sharded and uses_cpu():
        # Accelerate would silently keep a whole copy in each process.
        raise ConfigError(
            "devices.sharded is true and there is no accelerator here: Accelerate does not shard "
            "on CPUs; leave it out"
        )
    set_seed(settings.seed)
    narrow = settings.lora is not None and settings.devices.precision == "bf16"
    base = settings.model if settings.lora is not None else start
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            base.resolve(),
            dtype=torch.bfloat16 if narrow else torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        refuse_missing(found, base)
        if settings.lora is None:
            return model
        if start != settings.model:
            return PeftModel.from_pretrained(model, start, is_trainable=True)
        return get_peft_model(model, _adapter_of(settings.lora))
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(_broken("model", base, error)) from None


def _adapter_of(lora: LoraSettings) -> LoraConfig:
    modules = lora.target_modules
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )


def save_model(trainer: Trainer, tokenizer: Any, place: Path, card: Callable[[], str]) -> None:
    """Write the trained model, or its adapter, to its place, complete or not at all.

    Called on every rank: shards are gathered.

    Args:
        trainer: Holds the model.
        tokenizer: Its tokenizer.
        place: Folder that does not exist yet.
        card: Makes the model's README.md; called on the main process.

    Raises:
        ConfigError: shards were not gathered, so that there are no weights.
    """
    part = place.with_name(f".{place.name}.part")
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    if trainer.is_fsdp_enabled:
        # With sharded checkpoints it would silently write no weights.
        accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(part))

    def publish() -> None:
        if not any(part.glob("*.safetensors")):
            raise ConfigError(
                f"there are no weights to write to {str(place)!r}: the launcher's sharding does "
                "not gather them; the last checkpoint has them, and the same command goes on from "
                "it"
            )
        tokenizer.save_pretrained(part)
        (part / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
        (part / "README.md").write_text(card(), "utf-8")
        part.rename(place)

    together(publish if accelerator.is_main_process else lambda: None, accelerator)


def _broken(what: str, folder: Path, error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{what} in {str(folder)!r} cannot be opened: {first}"


_NAME = re.compile(r"checkpoint-(\d+)")
_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
_LEFT_OVER = re.compile(r"\.saving(-\d+)?|\.(replaced|deleted)-\d+")


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, the oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=update_of)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run; None if there is none."""
    return next(reversed(checkpoints(folder)), None)


def update_of(checkpoint: Path | None) -> int:
    """Return the number of weight updates before a checkpoint; None has 0."""
    if checkpoint is None:
        return 0
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint.name!r} is no name of a checkpoint")
    return int(match[1])


def staging(folder: Path) -> Path:
    """Return the folder that checkpoints are written into: the trainer's `output_dir`."""
    return folder / ".saving"


def publish(written: Path, folder: Path, keep: int) -> None:
    """Move a checkpoint to its place in a run's folder, and delete all but the newest `keep`."""
    place = folder / written.name
    for path in [*written.rglob("*"), written]:
        _to_disk(path)
    if place.exists():
        _delete(place, folder / f".replaced-{update_of(place)}")
    written.rename(place)
    _to_disk(folder)
    for each in checkpoints(folder)[:-keep]:
        _delete(each, folder / f".deleted-{update_of(each)}")


def sweep(folder: Path) -> None:
    """Delete what a process that was killed while saving or deleting left behind."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Explain that the disk of a run's folder takes no further checkpoint.

    Raises:
        ConfigError: a checkpoint cannot be written; earlier ones are unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise ConfigError(
            f"a checkpoint cannot be written to {str(folder)!r}: {error.strerror}; make room, and "
            "the same command goes on from the checkpoint before it"
        ) from None


def _delete(checkpoint: Path, aside: Path) -> None:
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class WholeCheckpoints(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Publishes each checkpoint once all ranks have written it."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        accelerator: Accelerator,
        also: Callable[[Path], None] | None = None,
    ) -> None:
        """Watch a trainer whose `output_dir` is `staging(folder)`.

        Args:
            folder: Of the run.
            keep: Newest checkpoints to keep.
            accelerator: Of the trainer.
            also: Writes further files into a checkpoint; called on every rank.
        """
        self._folder, self._keep, self._accelerator, self._also = folder, keep, accelerator, also

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,  # Any: as the base class has it
    ) -> None:
        """Publish what the trainer has written."""
        written = staging(self._folder) / f"checkpoint-{state.global_step}"
        if self._also is not None:
            self._also(written)
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            publish(written, self._folder, self._keep)
        self._accelerator.wait_for_everyone()

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,  # Any: as above
    ) -> None:
        """Remove the empty folder."""
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
            shutil.rmtree(staging(self._folder), ignore_errors=True)


class StopWhenAsked(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Asks after every update whether to stop; if one rank must, all do."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked
        self.stopped = False
        """Whether it did."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,  # Any: as above
    ) -> TrainerControl:
        """Write a checkpoint and leave the loop; transformers calls an update a step."""
        if state.global_step < state.max_steps and self._told(args):
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def _told(self, args: TrainingArguments) -> bool:
        if not torch.distributed.is_initialized():
            return self._asked()
        flag = torch.tensor([self._asked()], dtype=torch.int, device=args.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())
