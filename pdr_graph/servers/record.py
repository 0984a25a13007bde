"""What a keeper writes down about its server, and where."""

import dataclasses
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pdr_graph.errors import LocalError
from pdr_graph.servers.data_dir import FileLock, own_folder
from pdr_graph.servers.process import Kind, Part, Process, ServerPlan

State = Literal["starting", "ready", "failed"]

LOCK_WAIT_S = 2.0
"""Wait for a lock, which others take for the instant that a look at it lasts."""


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """How a part is, or was when its keeper died."""

    part: Part
    kind: Kind
    state: State
    keeper: Process
    server: Process | None = None
    """The server where it is a process that the keeper started; an embedded part has its own."""
    url: str = ""
    model: str = ""
    log: str = ""
    command: tuple[str, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    since: float = field(default_factory=time.time)
    """Seconds since 1970 at which the keeper began."""
    doing: str = ""
    """What it does at its start, in a line."""
    error: str = ""
    """Why it failed, in a sentence."""

    @classmethod
    def begin(cls, plan: ServerPlan, keeper: Process, log: Path) -> "ServerRecord":
        """Return the record of a part that begins to start."""
        return cls(
            part=plan.part,
            kind=plan.kind,
            state="starting",
            keeper=keeper,
            url=plan.url,
            model=plan.model,
            log=str(log),
            command=plan.command,
            asked=dict(plan.asked),
        )


class Shelf:
    """The folder of the keepers: their records, locks and logs."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.home = data_dir / "stack"

    def made(self) -> "Shelf":
        """Make the folder.

        Raises:
            LocalError: it cannot be made.
        """
        self.home = own_folder(self.home)
        return self

    def log(self, part: Part) -> Path:
        """Return the file that keeper and server write to."""
        return self.home / f"{part}.log"

    def lock(self, part: Part) -> FileLock:
        """Open the lock that the keeper of a part holds."""
        return FileLock(self.home / f"{part}.lock")

    def is_kept(self, part: Part) -> bool:
        """Tell whether a keeper of this part is alive."""
        if not (self.home / f"{part}.lock").exists():
            return False
        with self.lock(part) as lock:
            return not lock.try_shared()

    def read(self, part: Part) -> ServerRecord | None:
        """Return the record of a part, None if there is none.

        Raises:
            LocalError: something else than a keeper wrote it.
        """
        file = self._file(part)
        try:
            return _parsed(json.loads(file.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalError(
                f"{file} is not a record of `pdr-graph up` ({error}); end the server by hand and "
                "remove the file"
            ) from error

    def write(self, record: ServerRecord) -> None:
        """Put a record in the place of the one before it, whole or not at all."""
        file = self._file(record.part)
        partial = file.with_name(f"{file.name}.{os.getpid()}.part")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            json.dump(dataclasses.asdict(record), out, indent=1)
        partial.replace(file)

    def remove(self, part: Part) -> None:
        """Forget a part."""
        self._file(part).unlink(missing_ok=True)

    def _file(self, part: Part) -> Path:
        return self.home / f"{part}.json"


def _parsed(fields: dict[str, Any]) -> ServerRecord:  # Any: JSON
    server = fields["server"]
    return ServerRecord(
        **{
            **fields,
            "keeper": Process(**fields["keeper"]),
            "server": None if server is None else Process(**server),
            "command": tuple(fields["command"]),
        }
    )
