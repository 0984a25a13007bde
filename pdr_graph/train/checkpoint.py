"""Checkpoints that are there whole or not at all, in the folder of a run.

One is written beside its place and then renamed; one that is not needed any more is renamed before
it is deleted. So a process that is killed at any moment leaves every `checkpoint-N` complete.

What of a run decides its data, kept in each checkpoint: a run is resumed as what it was.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from pdr_graph.errors import ConfigError
from pdr_graph.train.plan import Schedule

_NAME = re.compile(r"checkpoint-(\d+)")
_LEFT_OVER = re.compile(r"\.(saving|replaced|deleted)-\d+")


class Ranks(Protocol):
    """The processes of a run, as Accelerate's `Accelerator` knows them."""

    @property
    def is_main_process(self) -> bool:
        """Whether this one does what is done once."""

    def wait_for_everyone(self) -> None:
        """Return once all processes have come here."""


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, the oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=update_of)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, None where there is none."""
    return next(reversed(checkpoints(folder)), None)


def update_of(checkpoint: Path) -> int:
    """Return the number of weight updates before a checkpoint."""
    match = _NAME.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint.name!r} is no name of a checkpoint")
    return int(match[1])


def staging(folder: Path, update: int) -> Path:
    """Return where a checkpoint is written before it is published."""
    return folder / f".saving-{update}"


@contextmanager
def saved_whole(folder: Path, update: int, keep: int, ranks: Ranks) -> Iterator[Path]:
    """Give a folder to write `checkpoint-N` into; it is then moved to its place in the run's.

    Entered on every rank. Of older checkpoints the newest stay, `keep` in all.

    Raises:
        ConfigError: the disk does not take it; earlier checkpoints are as they were.
    """
    beside = staging(folder, update)
    try:
        if ranks.is_main_process:
            shutil.rmtree(beside, ignore_errors=True)
        ranks.wait_for_everyone()
        yield beside
        ranks.wait_for_everyone()
        if ranks.is_main_process:
            publish(beside / f"checkpoint-{update}", folder)
            beside.rmdir()
            keep_last(folder, keep)
        ranks.wait_for_everyone()
    except OSError as error:
        raise ConfigError(
            f"checkpoint {update} cannot be written to {str(folder)!r}: {error.strerror}; make "
            "room and resume the run from the one before it"
        ) from None


def publish(written: Path, folder: Path) -> None:
    """Move a checkpoint that is on the disk to its place in a run's folder."""
    place = folder / written.name
    for path in [*written.rglob("*"), written]:
        _to_disk(path)
    if place.exists():
        _delete(place, folder / f".replaced-{update_of(place)}")
    written.rename(place)
    _to_disk(folder)


def keep_last(folder: Path, number: int) -> None:
    """Delete all but the newest checkpoints of a run."""
    for each in checkpoints(folder)[:-number]:
        _delete(each, folder / f".deleted-{update_of(each)}")


def sweep(folder: Path) -> None:
    """Delete what a process that was killed while saving or deleting left behind."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _LEFT_OVER.fullmatch(path.name):
                shutil.rmtree(path)


def _delete(checkpoint: Path, aside: Path) -> None:
    checkpoint.rename(aside)
    shutil.rmtree(aside)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


FILE = "run.json"


@dataclass(frozen=True, slots=True)
class TrainRunRecord:
    """What must be the same when a run is resumed."""

    schedule: Schedule
    updates_per_step: int
    num_ranks: int
    rows_at_once: int

    def save(self, checkpoint: Path) -> None:
        """Write it into a checkpoint."""
        text = json.dumps(self._plain(), indent=1, ensure_ascii=True)
        (checkpoint / FILE).write_text(text, encoding="utf-8")

    def check(self, checkpoint: Path) -> None:
        """Refuse to go on from a checkpoint of another run.

        Raises:
            ConfigError: it is none, or was written with other numbers; the sentence names them.
        """
        try:
            saved = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ConfigError(
                f"{str(checkpoint)!r} holds no run that can be resumed: {FILE} cannot be read"
            ) from None
        here = json.loads(json.dumps(self._plain()))
        changed = [
            f"{name} was {saved.get(name)} and is {value}"
            for name, value in here.items()
            if saved.get(name) != value
        ]
        if changed:
            raise ConfigError(
                f"checkpoint {str(checkpoint)!r} is of another run: {'; '.join(changed)}; resume "
                "it as it was started, or start a new one"
            )

    def _plain(self) -> dict[str, Any]:
        return asdict(self)
