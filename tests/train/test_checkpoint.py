"""Checkpoints are complete or absent, and a folder is clean after a process was killed."""

import errno
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from accelerate import Accelerator
from transformers import TrainerState

from pdr_graph.errors import ConfigError
from pdr_graph.train.models import (
    WholeCheckpoints,
    checkpoints,
    last_checkpoint,
    publish,
    staging,
    sweep,
    update_of,
    writable,
)


def write(folder: Path, update: int, text: str = "weights") -> Path:
    """Write a checkpoint where transformers does."""
    written = staging(folder) / f"checkpoint-{update}"
    (written / "deep").mkdir(parents=True)
    (written / "deep" / "model").write_text(text)
    return written


def save(folder: Path, update: int, text: str = "weights", *, keep: int = 2) -> None:
    publish(write(folder, update, text), folder, keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path != staging(folder))


def test_the_newest_checkpoints_stay(tmp_path):
    """By number, not by name: 10 is newer than 9."""
    for update in (8, 9, 10):
        save(tmp_path, update)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-9"]
    assert update_of(last_checkpoint(tmp_path)) == 10


def test_a_checkpoint_is_not_there_before_it_is_whole(tmp_path):
    """What dies while writing leaves the one before as the last, and the next sweep clears up."""
    save(tmp_path, 1)
    write(tmp_path, 2)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_a_trainer_that_has_saved_publishes_it_with_what_else_belongs_to_it(tmp_path):
    """The further files are in it before it is in its place; the empty folder goes at the end."""
    written = write(tmp_path, 3)
    seen = []

    def also(checkpoint: Path) -> None:
        seen.append(checkpoint == written and not checkpoints(tmp_path))
        (checkpoint / "rows-0.pt").touch()

    saving = WholeCheckpoints(tmp_path, 2, Accelerator(cpu=True), also)
    saving.on_save(None, TrainerState(global_step=3), None)
    saving.on_train_end(None, TrainerState(global_step=3), None)
    assert seen == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert {path.name for path in (tmp_path / "checkpoint-3").iterdir()} == {"deep", "rows-0.pt"}


def test_a_sweep_leaves_what_is_not_a_left_over(tmp_path):
    """Only folders that saving makes beside checkpoints are taken, older versions' included."""
    for name in (".saving", ".saving-3", ".deleted-1", ".replaced-2", "checkpoint-3", "logs"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == ["checkpoint-3", "logs"]
    sweep(tmp_path / "not there")


def test_a_checkpoint_that_is_written_again_is_the_new_one(tmp_path):
    """As after a step that was done twice."""
    save(tmp_path, 4, "old")
    save(tmp_path, 4, "new")
    assert names(tmp_path) == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "deep" / "model").read_text() == "new"


def test_a_disk_that_takes_nothing_is_a_sentence(tmp_path):
    """Other errors of the system stay what they are."""
    with (
        pytest.raises(ConfigError, match=r"cannot be written to .*No space left on device; make"),
        writable(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ConnectionRefusedError), writable(tmp_path):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")


def test_no_folder_has_no_checkpoint(tmp_path):
    """Nor does a folder of other things."""
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None
    assert update_of(None) == 0
