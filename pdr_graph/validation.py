"""Says what is wrong with a request: what does not fit, and what differs from the record."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from pdr_graph.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that pydantic finds wrong with a value."""

    path: tuple[str, ...]
    """Names and positions that lead to it; empty where the value does not fit as a whole."""
    kind: str
    """pydantic's name of the kind of fault, such as `missing`."""
    message: str
    """What would fit; begins with a small letter."""
    value: object
    """What was given."""

    @classmethod
    def of(cls, error: Any) -> "Fault":  # Any: what pydantic raises, and FastAPI after it
        """Read the first fault of a validation error."""
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        return cls(
            path=tuple(str(each) for each in first["loc"]),
            kind=str(first["type"]),
            message=f"{message[:1].lower()}{message[1:]}" if first["loc"] else message,
            value=first.get("input"),
        )

    @property
    def name(self) -> str:
        """The path with dots, positions included; empty for the value as a whole."""
        return ".".join(self.path)

    def sentence(
        self, name: str | None = None, *, model: type[BaseModel] | None = None, secret: bool = False
    ) -> str:
        """Say in one sentence what does not fit, with its value, and what would.

        Args:
            name: What the user calls the field; None is its path without positions.
            model: What was to be made; names the settings that exist beside an unknown one.
            secret: Whether the value must not be shown.
        """
        if not self.path:
            return self.message
        if self.kind == "extra_forbidden" and model is not None:
            known = list(_table_of(model, self.path[:-1]).model_fields)
            place = f" in [{'.'.join(self.path[:-1])}]" if self.path[:-1] else ""
            return f"unknown setting {self.path[-1]!r}{place}; {choice(self.path[-1], known)}"
        name = name or ".".join(each for each in self.path if not each.isdigit())
        if self.kind == "missing":
            return f"{name} is missing; set it"
        return f"{name}{'' if secret else f' {shown(self.value)}'}: {self.message}"


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting that was recorded with one value and is now asked for with another."""

    name: str
    """With dots, where tables are nested."""
    recorded: object
    """None also where the record does not hold it."""
    asked: object
    """None also where it is not asked for."""

    def __str__(self) -> str:
        """Return the name with both values."""
        return f"{self.name} ({shown(self.recorded)}, now {shown(self.asked)})"


def differences(
    recorded: Mapping[str, Any], asked: Mapping[str, Any], *, free: Collection[str] = ()
) -> list[Difference]:
    """List the settings that differ, in the order of the record.

    Args:
        recorded: What a run was started with, as plain data.
        asked: What it is asked to go on with.
        free: Names that may differ.
    """
    was, now = _flat(recorded), _flat(asked)
    return [
        Difference(name, was.get(name), now.get(name))
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name) and name not in free
    ]


def shown(value: object) -> str:
    """Return a value as a message shows it: lists as the command line takes them, cut at 60."""
    if isinstance(value, tuple | list) and value:
        text = ",".join(str(each) for each in value)
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def check_problem(problem: object) -> None:
    """Refuse a problem that is empty or not a text.

    Raises:
        ConfigError: the problem is empty or not a text.
    """
    if not isinstance(problem, str):
        raise ConfigError(
            f"the problem must be a text, not {shown(problem)}; state the task to be solved"
        )
    if not problem.strip():
        raise ConfigError("the problem is empty; state the task to be solved")


def choice(name: object, known: Sequence[str]) -> str:
    """Return the end of a sentence on an unknown name: the nearest known one, and all of them."""
    near = get_close_matches(str(name), known, n=1)
    return f"{f'perhaps {near[0]!r}; ' if near else ''}known: {', '.join(known)}"


def is_http_address(url: str) -> bool:
    """Tell whether a request can be sent there, as far as the address alone tells."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _table_of(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    for name in path:
        annotation = model.model_fields[name].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(
            each for each in options if isinstance(each, type) and issubclass(each, BaseModel)
        )
    return model
