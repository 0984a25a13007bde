"""A training run's folder: what was asked, and which process works in it.

    train.json          the header: settings, data, versions; written once, never changed
    train.lock          locked by the process that writes here
    metrics.jsonl       figures of every update (`metrics.py`); also in tensorboard/
    trajectories.jsonl  every run of the graph, if asked for
    checkpoint-N        the state after N updates (`checkpoint.py`)
    warm_start/         checkpoints of the warm start, and its model
    model               the trained model with its card, once the run is done

Under `accelerate launch` only the main process writes header, lock and metrics.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problems
from pdr_graph.train.settings import HOW_ONLY, TrainSettings
from pdr_graph.validation import differences

HEADER, LOCK, MODEL, WARM_START = "train.json", "train.lock", "model", "warm_start"
SCHEMA: Final = 1
_PACKAGES = ("pdr-graph", "torch", "transformers", "trl", "peft", "accelerate", "vllm")

Header = dict[str, Any]
"""schema, created, settings, data, warm_start, versions."""


def header_of(settings: TrainSettings, problems: Problems | None) -> Header:
    """Return the header of a new run."""
    warm = settings.warm_start
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.model_dump(mode="json"),
        "data": problems
        and {
            "source": problems.source,
            "sha256": problems.sha256,
            "num_problems": len(problems.problems),
        },
        "warm_start": warm and {"sha256": hashlib.sha256(warm.data.read_bytes()).hexdigest()},
        "versions": _versions(),
    }


def read_header(folder: Path) -> Header | None:
    """Read the header of a run; None if there is no run.

    Raises:
        ConfigError: it is damaged, or of another schema version.
    """
    file = folder / HEADER
    try:
        header = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} is damaged ({error}); restore it, or name another --out"
        ) from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise ConfigError(
            f"{file} is of another schema version than {SCHEMA}; use the pdr-graph that wrote it"
        )
    return header


def refuse_changes(folder: Path, asked: Header) -> None:
    """Refuse to resume a run with other settings, or to train in the folder of another run.

    Raises:
        ConfigError: the sentence names every difference.
    """
    recorded = read_header(folder)
    if recorded is None:
        if (folder / "run.json").exists():
            raise ConfigError(
                f"{str(folder)!r} holds a run of `pdr-graph eval`; name another --out"
            )
        return
    changed = differences(recorded["settings"], asked["settings"], free=HOW_ONLY)
    others = [str(each) for each in changed]
    for name in ("data", "warm_start"):
        was, now = recorded[name], asked[name]
        if was and now and was["sha256"] != now["sha256"]:
            others.append("content of its " + ("data" if name == "data" else "warm-start data"))
    if others:
        raise ConfigError(
            f"{str(folder)!r} holds a run with another {', another '.join(others)}; repeat its "
            "settings, or name another --out"
        )


@dataclass(frozen=True, slots=True)
class TrainFolder:
    """The folder of a run."""

    path: Path

    @property
    def model(self) -> Path:
        """Where the trained model goes."""
        return self.path / MODEL

    @property
    def warm_start(self) -> Path:
        """Where the warm start's checkpoints and model go."""
        return self.path / WARM_START

    @property
    def finished(self) -> bool:
        """Whether the run is done; the model is moved to its place when it is complete."""
        return self.model.is_dir()

    @contextmanager
    def claimed(self, header: Header) -> Iterator[None]:
        """Lock the folder for as long as the block lasts, and write the header of a new run.

        Raises:
            ConfigError: it cannot be made, or another process has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise ConfigError(
                f"--out {str(self.path)!r} cannot be made: {error.strerror}"
            ) from None
        try:
            _hold(lock, self.path)
            self._begin(header)
            yield
        finally:
            os.close(lock)

    def _begin(self, header: Header) -> None:
        file = self.path / HEADER
        if not file.exists():
            whole = self.path / f".{HEADER}"
            whole.write_text(json.dumps(header, indent=2) + "\n", "utf-8")
            whole.replace(file)


def _hold(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigError(
            f"another process trains in {str(path)!r}; wait until it has ended, or name another "
            "--out"
        ) from None


def _versions() -> Mapping[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
