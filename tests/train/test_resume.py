"""A run that is killed and resumed ends as the run that was not: to the last bit."""

import json
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.train.models import last_checkpoint, staging, update_of
from tests.train.drawn_rows import NUM_STEPS, NUM_UPDATES, run, run_with
from tests.train.processes import exit_code, start, start_ranks

KILLED = -9
TWO = {"ranks": 2}


def killed_at(folder: Path, processes) -> None:
    """Wait until a run stands still, and end all of it by SIGKILL."""
    deadline = time.monotonic() + 300.0
    while not (folder / "here").exists():
        assert time.monotonic() < deadline
        assert all(each.is_alive() for each in processes)
        time.sleep(0.02)
    for each in processes:
        each.kill()
    assert [exit_code(each) for each in processes] == [KILLED] * len(processes)
    (folder / "here").unlink()


def weights(folder: Path, rank: int = 0):
    return torch.load(folder / f"final-{rank}.pt")


def drawn(folder: Path, rank: int = 0):
    """Return what was drawn, by the policy version that drew it."""
    steps = json.loads((folder / f"drawn-{rank}.json").read_text())
    return {step["policy_version"]: step for step in steps}


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert exit_code(start(run, folder)) == 0
    versions = [step * NUM_UPDATES for step in range(NUM_STEPS)]
    assert list(drawn(folder)) == versions
    return folder


@pytest.mark.parametrize(
    ("how", "resumed_at"),
    [
        # Update 5 is lost, and with it a step that was drawn: it is drawn again.
        ({"save_every": 4, "still_after": 5}, 4),
        # Between the two updates of a step: the rows that are left are in the checkpoint.
        ({"save_every": 3, "still_after": 4}, 3),
        # Amid the checkpoint after update 6: its weights are written, its optimiser is not.
        ({"save_every": 2, "still_amid_save": 6}, 4),
    ],
    ids=["between steps", "within a step", "while saving"],
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, whole, how, resumed_at):
    """The same weights, and the same problems, plans, seeds, versions and tokens."""
    killed_at(tmp_path, [start(run_with, tmp_path, how)])
    assert update_of(last_checkpoint(tmp_path)) == resumed_at
    assert exit_code(start(run, tmp_path)) == 0
    assert equal(weights(tmp_path), weights(whole))
    again = drawn(tmp_path)
    assert again == {
        version: step for version, step in drawn(whole).items() if version >= resumed_at
    }
    assert again
    assert not staging(tmp_path).exists()


def test_an_adapter_is_resumed_as_well(tmp_path):
    """Its weights are those of the run that was not killed, and the base is untouched."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(run_with, whole, {"lora": True})
    second = start(run_with, killed, {"lora": True, "save_every": 3, "still_after": 4})
    killed_at(killed, [second])
    assert exit_code(first) == 0
    assert exit_code(start(run_with, killed, {"lora": True})) == 0
    assert equal(weights(killed), weights(whole))


def test_ranks_are_resumed_together(tmp_path):
    """Each has its own rows left of the step, and draws its own from then on."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [exit_code(each) for each in start_ranks(2, run_with, whole, TWO)] == [0, 0]
    killed_at(killed, start_ranks(2, run_with, killed, {**TWO, "save_every": 3, "still_after": 4}))
    assert [exit_code(each) for each in start_ranks(2, run_with, killed, TWO)] == [0, 0]
    for rank in range(2):
        assert equal(weights(killed, rank), weights(whole, rank))
        expected = {version: step for version, step in drawn(whole, rank).items() if version > 3}
        assert drawn(killed, rank) == expected
    assert equal(weights(whole, 0), weights(whole, 1))
    assert drawn(whole, 0) != drawn(whole, 1)
