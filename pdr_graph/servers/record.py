"""The plan of a server, the record that its keeper writes, and where both are kept.

Each part, the model and the store, has a *keeper*: a process of its own that starts the server,
waits until it answers, records its state, and ends it when asked. The command that started a keeper
may be killed at any time, since everything is in the keeper's folder:

- `PART.lock` is held by the keeper; the kernel drops it with the keeper.
- `PART.json` is the keeper's record: the state, the address, the processes with their start times.
- `PART.log` has the output of keeper and server.
"""

import dataclasses
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pdr_graph.errors import LocalError, redacted
from pdr_graph.files import written_whole
from pdr_graph.process import Process
from pdr_graph.servers.data_dir import FileLock, noted_key, own_folder

Part = Literal["model", "store"]
PARTS: tuple[Part, ...] = ("model", "store")
Kind = Literal["vllm", "embedded model", "redis", "embedded valkey"]
State = Literal["starting", "ready", "failed"]

TITLES: Mapping[Kind, str] = {
    "vllm": "vLLM",
    "embedded model": "the embedded model",
    "redis": "Redis",
    "embedded valkey": "the embedded Valkey",
}
LOCK_WAIT_S = 2.0
"""Seconds to wait for a lock, which others take for a moment to see whether it is held."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """One server that is to run."""

    part: Part
    kind: Kind
    url: str = ""
    """Where it will answer; "" if that is known only after its start."""
    command: tuple[str, ...] = ()
    """The program and its arguments; empty for an embedded part."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the command beside ours; may hold a key."""
    model: str = ""
    """Name under which the model is served."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # Any: arguments of embedded parts
    """Arguments with which an embedded part is opened."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """Options that the user gave for it; a later `up` with other options is refused."""
    timeout_s: float = 1800.0
    """Longest start, in seconds."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should read."""

    def to_json(self) -> str:
        """Return the plan as a keeper reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "ServerPlan":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        for name in ("command", "notes"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def shown(self) -> str:
        """Return the command as a shell takes it, without keys; a comment for an embedded part."""
        if not self.command:
            settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
            return f"# {TITLES[self.kind]}{settings and ': '}{settings}"
        variables = [
            f"{name}={'***' if name.endswith('KEY') else shlex.quote(value)}"
            for name, value in self.environment.items()
        ]
        return " ".join([*variables, shlex.join(self.command)])


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """The state of a part, or its last state if the keeper has died."""

    part: Part
    kind: Kind
    state: State
    keeper: Process
    server: Process | None = None
    """The process that the keeper started; None for an embedded part, which has its own."""
    url: str = ""
    """Where it answers; may hold a password."""
    model: str = ""
    log: str = ""
    command: tuple[str, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    since: float = field(default_factory=time.time)
    """Start of the keeper, in seconds since 1970."""
    doing: str = ""
    """The step that it is at while it starts, in a line."""
    error: str = ""
    """The reason for a failure, in a sentence."""
    key_file: str = ""
    """The file with the key that the server asks for; "" where it asks for none of ours."""

    @property
    def shown_url(self) -> str:
        """The address as it may be shown."""
        return without_password(self.url)

    @property
    def by_priority(self) -> bool:
        """Whether the server is vLLM that serves requests by their priority."""
        words = [part for word in self.command for part in word.split("=", 1)]
        # vLLM reads an underscore in a flag as a hyphen, and the last flag wins.
        policies = [
            value
            for name, value in pairwise(words)
            if name.replace("_", "-") == "--scheduling-policy"
        ]
        return self.kind == "vllm" and policies[-1:] == ["priority"]


class Shelf:
    """The folder of the keepers: their records, locks and logs."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.home = data_dir / "stack"

    def made(self) -> "Shelf":
        """Make the folder.

        Raises:
            LocalError: The folder cannot be made.
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
        """Tell whether the keeper of a part is alive."""
        if not (self.home / f"{part}.lock").exists():
            return False
        with self.lock(part) as lock:
            return not lock.try_shared()

    def read(self, part: Part) -> ServerRecord | None:
        """Return the record of a part, None if there is none.

        Raises:
            LocalError: The file was not written by a keeper of this version.
        """
        file = self._file(part)
        try:
            fields = json.loads(file.read_text("utf-8"))
            fields["keeper"] = Process(**fields["keeper"])
            if fields["server"] is not None:
                fields["server"] = Process(**fields["server"])
            fields["command"] = tuple(fields["command"])
            return ServerRecord(**fields)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalError(
                f"{str(file)!r} is not a record of `pdr-graph up` ({error}); end the server by "
                "hand and remove the file"
            ) from error

    def write(self, record: ServerRecord) -> None:
        """Replace the record of a part, whole or not at all."""
        file = self._file(record.part)
        with written_whole(file, private=True) as out:
            out.write(json.dumps(dataclasses.asdict(record), indent=1).encode())

    def takes_priorities(self, base_url: str) -> bool:
        """Tell whether `up` has started the server at an address, and it serves by priority."""
        record = self._serving(base_url)
        return record is not None and record.by_priority

    def is_embedded(self, base_url: str) -> bool:
        """Tell whether `up` has started the server at an address, and it is the embedded one."""
        record = self._serving(base_url)
        return record is not None and record.kind == "embedded model"

    def key_of(self, base_url: str) -> str:
        """Return the key of the server that `up` has started at an address; "" if there is none."""
        record = self._serving(base_url)
        return noted_key(Path(record.key_file)) if record is not None and record.key_file else ""

    def _serving(self, base_url: str) -> ServerRecord | None:
        """Return the record of the model server that answers at an address, if it is ours."""
        try:
            record = self.read("model")
            ours = (
                record is not None
                and record.state == "ready"
                and _place(record.url) == _place(base_url)
                and self.is_kept("model")
            )
        except LocalError:
            return None  # the record of another version, or of another user
        return record if ours else None

    def remove(self, part: Part) -> None:
        """Remove the record of a part."""
        self._file(part).unlink(missing_ok=True)

    def _file(self, part: Part) -> Path:
        return self.home / f"{part}.json"


def without_password(url: str) -> str:
    """Return a URL as it may be shown; a password may also be an option in its query."""
    scheme, separator, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    return redacted(f"{scheme}{separator}{name}{colon and ':***'}{at}{host}")


def _place(url: str) -> tuple[str, int | None, str]:
    """Return host, port and path of an address; `localhost` is 127.0.0.1."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return url, None, ""
    return "127.0.0.1" if host == "localhost" else host, port, parts.path.rstrip("/")
