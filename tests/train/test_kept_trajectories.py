"""What a run that goes on draws again is not kept twice, and what it does not is not lost."""

import pytest

from pdr_graph.errors import ConfigError
from pdr_graph.train.recorder import run_name, version_of
from pdr_graph.train.rollouts import forget_after, keep
from pdr_graph.train.supervised import TRAJECTORIES
from pdr_graph.train.trajectory import read_trajectories
from tests.train.test_trajectory import make_call, make_trajectory


def drawn(version: int, index: int = 0, *, failed: bool = False):
    """Return a run that the weights after some updates drew; with all of its calls, or none."""
    calls = () if failed else (make_call(policy_version=version),)
    return make_trajectory(thread_id=run_name(version, 7, 0, index), calls=calls)


def kept_after(folder, update: int) -> list[str]:
    """Return the names of the runs that are left for a run going on after an update."""
    forget_after(folder, update)
    return [each.thread_id for each in read_trajectories(folder / TRAJECTORIES)]


def test_what_is_drawn_again_is_forgotten(tmp_path):
    """A step whose weights the checkpoint has not gone beyond; runs of earlier ones stay."""
    keep(tmp_path, [drawn(0), drawn(2), drawn(4)])
    assert kept_after(tmp_path, 3) == ["v0-s7-p0-r0", "v2-s7-p0-r0"]
    assert kept_after(tmp_path, 2) == ["v0-s7-p0-r0"]
    assert kept_after(tmp_path, 0) == []


def test_a_run_without_calls_is_forgotten_as_well(tmp_path):
    """All of them failed, so that only its name tells which weights drew it."""
    keep(tmp_path, [drawn(0, failed=True), drawn(2, 0), drawn(2, 1, failed=True)])
    assert kept_after(tmp_path, 2) == ["v0-s7-p0-r0"]


def test_a_torn_line_is_dropped_and_a_damaged_one_named(tmp_path):
    """The writer of the first was killed; the second is not of a training run."""
    keep(tmp_path, [drawn(0)])
    with (tmp_path / TRAJECTORIES).open("a") as file:
        file.write('{"thread_id": "v0-s7-p0')
    assert kept_after(tmp_path, 2) == ["v0-s7-p0-r0"]
    keep(tmp_path, [make_trajectory(thread_id="mine")])
    with pytest.raises(ConfigError, match=r"trajectories\.jsonl line 2 is no trajectory; remove"):
        forget_after(tmp_path, 2)


def test_a_name_tells_the_version():
    """And nothing else does."""
    assert version_of(run_name(12, 81923, 0, 3)) == 12
    for name in ("12", "v12", "xv1-s2-p3-r4", "v1-s2-p3-r4x"):
        with pytest.raises(ValueError, match="is no name of a run"):
            version_of(name)
