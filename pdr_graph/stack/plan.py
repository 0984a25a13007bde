"""What is to be started, settled before anything is."""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Part = Literal["model", "store"]
PARTS: tuple[Part, ...] = ("model", "store")

Kind = Literal["vllm", "embedded model", "redis", "embedded valkey"]

TITLES: Mapping[Kind, str] = {
    "vllm": "vLLM",
    "embedded model": "the embedded model",
    "redis": "Redis",
    "embedded valkey": "the embedded Valkey",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """One server that is to run."""

    part: Part
    kind: Kind
    url: str = ""
    """Where it will answer; "" where only its start tells."""
    command: tuple[str, ...] = ()
    """What is run; empty for an embedded part."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the command has on top of ours; may hold a key."""
    model: str = ""
    """The name that the model is served under."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # Any: arguments of embedded parts
    """What an embedded part is opened with."""
    asked: Mapping[str, str] = field(default_factory=dict)
    """Options that the user gave for it; another `up` with others is told of the difference."""
    timeout_s: float = 1800.0
    """For its start."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should read."""

    def to_json(self) -> str:
        """Return the plan as a keeper reads it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        lists = {name: tuple(fields[name]) for name in ("command", "notes")}
        return cls(**{**fields, **lists})

    def shown(self) -> str:
        """Return what a shell would be told, without keys; a comment for an embedded part."""
        if not self.command:
            settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
            return f"# {TITLES[self.kind]}{settings and ': '}{settings}"
        variables = [
            f"{name}={'***' if name.endswith('KEY') else shlex.quote(value)}"
            for name, value in self.environment.items()
        ]
        return " ".join([*variables, shlex.join(self.command)])
