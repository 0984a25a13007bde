r"""A training run's folder: what was asked, which process works in it, and its figures.

    train.json          the header: settings, data, versions; written once, never changed
    train.lock          locked by the process that writes here
    metrics.jsonl       figures of every update, summed over ranks; also in tensorboard/
    trajectories.jsonl  every run of the graph, if asked for
    checkpoint-N        the state after N updates (`models.py`)
    warm_start/         checkpoints of the warm start, and its model
    model               the trained model with its card, once the run is done

Under `accelerate launch` only the main process writes header, lock and metrics.

A line of metrics: `{"update": 12, "step": 3, "stage": "rl", "seconds": 812.4, "reward/refine":
0.25, …}`. `seconds` counts work, not the time between a kill and the resume. Figures of rollouts
are in the first line of their step. Lines after the checkpoint that a run resumes from are cut off:
those updates are made again, with the same result.
"""

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, Protocol, Self

from pdr_graph.errors import ConfigError, install_command
from pdr_graph.eval.problems import Problems
from pdr_graph.files import append_lines, written_whole
from pdr_graph.llm.client import CUT
from pdr_graph.train.rows import TrainRow, groups_of, is_flat
from pdr_graph.train.settings import HOW_ONLY, TrainSettings
from pdr_graph.train.trajectory import Trajectory
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
            f"{str(file)!r} is damaged ({error}); restore it, or name another --out"
        ) from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise ConfigError(
            f"{str(file)!r} is of another schema version than {SCHEMA}; use the pdr-graph that "
            "wrote it"
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
            with written_whole(file) as out:
                out.write(json.dumps(header, indent=2).encode() + b"\n")


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


METRICS, EVENTS = "metrics.jsonl", "tensorboard"
Stage = Literal["warm_start", "rl"]
Figures = dict[str, float]
"""By name; a slash separates the subject from what is said of it."""
Line = dict[str, Any]
"""Update, step, stage and seconds; any other field is a figure."""
FIXED = frozenset({"update", "step", "stage", "seconds"})
"""Fields of a line that are no figures."""


@dataclass(slots=True)
class StepTally:
    """Totals and means over the calls and rows of a step, of one rank or of several."""

    totals: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    """Sum of the values of each mean."""
    numbers: Counter[str] = field(default_factory=Counter)
    """How many values each mean has."""
    longest: int = 0
    """Tokens of the longest row; 0 without rows."""

    @classmethod
    def of(cls, trajectories: Iterable[Trajectory], slots: Sequence[TrainRow | None]) -> Self:
        """Return what a rank collected in a step; None is a filler."""
        tally = cls()
        for trajectory in trajectories:
            tally._observe("reward/run", trajectory.reward)
            tally.totals["calls/failed"] += trajectory.failed_calls
            tally.totals["calls/made"] += len(trajectory.calls)
            for call in trajectory.calls:
                tally.totals["tokens/sampled"] += len(call.token_ids)
                tally.totals["tokens/prompt"] += len(call.prompt_ids)
        rows = [row for row in slots if row is not None]
        for row in rows:
            tally._observe(f"reward/{row.call.role}", row.reward)
            tally._observe(f"length/{row.call.role}", len(row.call.token_ids))
            tally._observe("rows/truncated", row.call.finish_reason in CUT)
            tally._observe("rows/correct", row.correct)
        tally.totals["rows/trained"] = len(rows)
        tally.totals["rows/fillers"] = len(slots) - len(rows)
        for group in groups_of(rows):
            tally._observe("groups/flat", is_flat(group))
        tally.longest = max((row.num_tokens for row in rows), default=0)
        return tally

    @classmethod
    def together(cls, tallies: Iterable[Self]) -> Self:
        """Return the tallies of several ranks as one."""
        whole = cls()
        for tally in tallies:
            whole.totals.update(tally.totals)
            whole.sums.update(tally.sums)
            whole.numbers.update(tally.numbers)
            whole.longest = max(whole.longest, tally.longest)
        return whole

    def figures(self) -> Figures:
        """Return all figures by name."""
        means = {name: self.sums[name] / number for name, number in self.numbers.items()}
        found = {**self.totals, **means}
        if self.longest:
            found["length/largest"] = self.longest
        return {name: float(value) for name, value in found.items()}

    def _observe(self, name: str, value: float) -> None:
        self.sums[name] += value  # type: ignore[assignment]  # a Counter of floats
        self.numbers[name] += 1


def read_metrics(file: Path) -> Iterator[Line]:
    """Yield the lines of a file; none if it does not exist. A torn last line is left out.

    Raises:
        ConfigError: a line is damaged; the sentence names it.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            value = json.loads(line)
            if FIXED - value.keys():
                raise ValueError("fields are missing")
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f"{file} line {number} is damaged ({error}); remove the line"
            ) from None
        yield value


@dataclass(slots=True)
class MetricsLog:
    """Writes the figures of one stage of a run; only on the main process."""

    folder: Path
    """Of the run."""
    stage: Stage
    updates_per_step: int = 1
    _seconds: float = 0.0
    """Seconds of work before this process."""
    _began: float = field(default_factory=monotonic)
    _events: Any = None  # Any: TensorBoard's writer, which has no types

    def open(self, update: int) -> None:
        """Begin after an update, 0 for none; cut off what this stage wrote later.

        Raises:
            ConfigError: the file is damaged.
        """
        file = self.folder / METRICS
        lines = list(read_metrics(file))
        kept = [line for line in lines if line["stage"] != self.stage or line["update"] <= update]
        if len(kept) < len(lines):
            with written_whole(file) as out:
                out.writelines(map(_encoded, kept))
        self._seconds = max((line["seconds"] for line in kept), default=0.0)
        self._began = monotonic()
        self._events = _event_writer(self.folder / EVENTS / self.stage, update + 1)

    def write(self, update: int, figures: Mapping[str, float]) -> Line:
        """Write the figures of one update to the disk, and return its line."""
        line: Line = {
            "update": update,
            "step": (update - 1) // self.updates_per_step + 1,
            "stage": self.stage,
            "seconds": round(self._seconds + monotonic() - self._began, 3),
            **figures,
        }
        append_lines(self.folder / METRICS, _encoded(line))
        for name, value in figures.items():
            self._events.add_scalar(name, value, update)
        self._events.flush()
        return line

    def close(self) -> None:
        """Write what TensorBoard still holds."""
        self._events.close()


def _encoded(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=True).encode() + b"\n"


def _event_writer(folder: Path, purge_step: int) -> Any:  # Any: as above
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            f"metrics for TensorBoard need tensorboard: {install_command('train')}"
        ) from None
    return SummaryWriter(str(folder), purge_step=purge_step)


class TrainWatcher(Protocol):
    """Follows a run; called only on the main process."""

    def phase(self, what: str) -> None:
        """Hear what happens now, such as `loading the model`."""

    def begins(self, stage: Stage, update: int, total: int, updates_per_step: int) -> None:
        """Hear that a stage begins, or resumes after an update; 0 is its beginning."""

    def told(self, line: Line) -> None:
        """Hear the figures of an update."""
