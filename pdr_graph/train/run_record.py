"""What of a run decides its data, kept in each checkpoint: a run is resumed as what it was."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.train.schedule import Schedule

FILE = "run.json"


@dataclass(frozen=True, slots=True)
class RunRecord:
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
