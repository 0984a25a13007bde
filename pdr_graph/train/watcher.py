"""What a training session tells whoever shows it."""

from typing import Protocol

from pdr_graph.train.metrics import Line, Stage


class Watcher(Protocol):
    """Follows a run; called on the main process alone."""

    def phase(self, what: str) -> None:
        """Hear what is done now, as `loading the model`."""

    def begins(self, stage: Stage, update: int, total: int, updates_per_step: int) -> None:
        """Hear that a stage begins, or goes on, after an update; 0 is its beginning."""

    def told(self, line: Line) -> None:
        """Hear the figures of an update."""
