"""Checkpoints that are complete or absent, in the folder of a run.

transformers writes a checkpoint into `.saving/`; it is then synced to the disk and renamed to its
place. One that is not needed any more is renamed before it is deleted. So a process that is killed
at any moment leaves every `checkpoint-N` complete.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError, install_command

try:
    import torch
    from accelerate import Accelerator
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError:
    raise ConfigError(f"training needs torch: {install_command('train')}") from None

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
        ConfigError: it does not; earlier checkpoints are as they were.
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
