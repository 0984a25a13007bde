"""Every trajectory of a run, in a file; what a resumed run draws again is there once."""

import json
from collections.abc import Sequence
from pathlib import Path

from pdr_graph.errors import ConfigError
from pdr_graph.train.recorded_calls import TRAJECTORIES
from pdr_graph.train.run_name import version_of
from pdr_graph.train.trajectory import Trajectory, append_trajectories


def keep(folder: Path, trajectories: Sequence[Trajectory]) -> None:
    """Append what was drawn; several processes may."""
    append_trajectories(folder / TRAJECTORIES, trajectories)


def forget_after(folder: Path, update: int) -> None:
    """Drop what was drawn by weights that a run going on from an update makes again.

    A step is drawn by the weights at its beginning, so what it drew is kept by the checkpoint if
    that was written after it.

    Raises:
        ConfigError: the file is damaged.
    """
    file = folder / TRAJECTORIES
    if not file.is_file():
        return
    part = file.with_suffix(".part")
    with file.open("rb") as lines, part.open("wb") as kept:
        for number, line in enumerate(lines, start=1):
            if line.endswith(b"\n") and _version(line, f"{file} line {number}") < update:
                kept.write(line)
    part.replace(file)


def _version(line: bytes, where: str) -> int:
    try:
        # Not of its calls: all of them may have failed.
        return version_of(json.loads(line)["thread_id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{where} is no trajectory; remove the line") from None
