r"""The figures of a run: a line of `metrics.jsonl` for each update, and TensorBoard's events.

A line: `{"update": 12, "step": 3, "stage": "rl", "seconds": 812.4, "reward/refine": 0.25, …}`;
`seconds` is work, the time that a killed run lay still left out. Figures of rollouts stand in the
first line of their step. What was written after the checkpoint that a run goes on from is cut
off: it is done again, and ends the same.

What a training session tells whoever shows it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Protocol

from pdr_graph.errors import ConfigError
from pdr_graph.eval.json_lines import append_lines

METRICS, EVENTS = "metrics.jsonl", "tensorboard"
Stage = Literal["warm_start", "rl"]
Line = dict[str, Any]
"""Update, step, stage and seconds; any other field is a figure."""
_FIXED = frozenset({"update", "step", "stage", "seconds"})


def read_metrics(file: Path) -> Iterator[Line]:
    """Yield the lines of a file; none if it is not there, and not one that is torn.

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
            if _FIXED - value.keys():
                raise ValueError("fields are missing")
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f"{file} line {number} is damaged ({error}); remove the line"
            ) from None
        yield value


@dataclass(slots=True)
class MetricsLog:
    """Writes the figures of one stage of a run; on the main process alone."""

    folder: Path
    """Of the run."""
    stage: Stage
    updates_per_step: int = 1
    _seconds: float = 0.0
    """Of work, before this process."""
    _began: float = field(default_factory=monotonic)
    _events: Any = None  # Any: TensorBoard's writer, which has no types

    @property
    def file(self) -> Path:
        """Where the lines are."""
        return self.folder / METRICS

    def open(self, update: int) -> None:
        """Begin after an update that is kept, 0 for none; what this stage wrote later is cut off.

        Raises:
            ConfigError: the file is damaged.
        """
        lines = list(read_metrics(self.file))
        kept = [line for line in lines if line["stage"] != self.stage or line["update"] <= update]
        if len(kept) < len(lines):
            whole = self.file.with_suffix(".part")
            whole.write_bytes(b"".join(map(_encoded, kept)))
            whole.replace(self.file)
        self._seconds = max((line["seconds"] for line in kept), default=0.0)
        self._began = monotonic()
        self._events = _event_writer(self.folder / EVENTS / self.stage, update + 1)

    def write(self, update: int, figures: Mapping[str, float]) -> Line:
        """Write the figures of one update, to the disk; returns its line."""
        line: Line = {
            "update": update,
            "step": (update - 1) // self.updates_per_step + 1,
            "stage": self.stage,
            "seconds": round(self._seconds + monotonic() - self._began, 3),
            **figures,
        }
        append_lines(self.file, _encoded(line))
        for name, value in figures.items():
            self._events.add_scalar(name, value, update)
        self._events.flush()
        return line

    def close(self) -> None:
        """Write what TensorBoard still holds."""
        if self._events is not None:
            self._events.close()
            self._events = None


def _encoded(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=True).encode() + b"\n"


def _event_writer(folder: Path, purge_step: int) -> Any:  # Any: as above
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "metrics for TensorBoard need tensorboard: pip install 'pdr-graph[train]'"
        ) from None
    return SummaryWriter(str(folder), purge_step=purge_step)


class TrainWatcher(Protocol):
    """Follows a run; called on the main process alone."""

    def phase(self, what: str) -> None:
        """Hear what is done now, as `loading the model`."""

    def begins(self, stage: Stage, update: int, total: int, updates_per_step: int) -> None:
        """Hear that a stage begins, or goes on, after an update; 0 is its beginning."""

    def told(self, line: Line) -> None:
        """Hear the figures of an update."""
