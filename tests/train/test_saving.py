"""Checkpoints are there whole or not at all, and a folder is clean after a process was killed."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.train.checkpoint import checkpoints, last_checkpoint, saved_whole, sweep, update_of


@dataclass
class OneProcess:
    """The only process of a run."""

    is_main_process: bool = True

    def wait_for_everyone(self) -> None:
        """Nobody else is waited for."""


def save(folder: Path, update: int, text: str = "weights", *, keep: int = 2) -> None:
    with saved_whole(folder, update, keep, OneProcess()) as beside:
        written = beside / f"checkpoint-{update}"
        (written / "deep").mkdir(parents=True)
        (written / "deep" / "model").write_text(text)


def die_while_saving(folder: Path, update: int) -> None:
    with saved_whole(folder, update, 2, OneProcess()) as beside:
        (beside / f"checkpoint-{update}").mkdir(parents=True)
        raise RuntimeError("killed")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_checkpoints_stay(tmp_path):
    """By number, not by name: 10 is newer than 9."""
    for update in (8, 9, 10):
        save(tmp_path, update)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-9"]
    assert update_of(last_checkpoint(tmp_path)) == 10


def test_a_checkpoint_is_not_there_before_it_is_whole(tmp_path):
    """What dies while writing leaves the one before as the last, and the next sweep clears up."""
    save(tmp_path, 1)
    with pytest.raises(RuntimeError, match="killed"):
        die_while_saving(tmp_path, 2)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    sweep(tmp_path)
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_sweep_leaves_what_is_not_a_left_over(tmp_path):
    """Only folders that saving makes beside checkpoints are taken."""
    for name in (".saving-3", ".deleted-1", ".replaced-2", "checkpoint-3", "logs", ".cache"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == [".cache", "checkpoint-3", "logs"]
    sweep(tmp_path / "not there")


def test_a_checkpoint_that_is_written_again_is_the_new_one(tmp_path):
    """As after a step that was done twice."""
    save(tmp_path, 4, "old")
    save(tmp_path, 4, "new")
    assert names(tmp_path) == ["checkpoint-4"]
    assert (tmp_path / "checkpoint-4" / "deep" / "model").read_text() == "new"


def test_a_disk_that_takes_nothing_is_a_sentence(tmp_path):
    """Earlier checkpoints stay."""
    save(tmp_path, 1)
    with (
        pytest.raises(ConfigError, match=r"checkpoint 2 cannot be written to .*No space left"),
        saved_whole(tmp_path, 2, 2, OneProcess()),
    ):
        raise OSError(28, "No space left on device")
    assert [update_of(each) for each in checkpoints(tmp_path)] == [1]


def test_no_folder_has_no_checkpoint(tmp_path):
    """Nor does a folder of other things."""
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None
