"""Reads a training run's settings: a TOML file, and what the command line says instead of it."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pdr_graph.errors import ConfigError
from pdr_graph.train.settings import TrainSettings

_HOW_ONLY = frozenset(
    {"policy.base_url", "policy.max_in_flight", "devices.memory_gib", "keep_checkpoints"}
)
"""Settings that a run may go on with others of: what is learnt does not depend on them."""


def load_train_settings(
    file: Path | None, given: Mapping[str, object], overrides: Sequence[str] = ()
) -> TrainSettings:
    """Read the settings of a run.

    Args:
        file: TOML, or the name of one that comes with the package; None is an empty one.
        given: Top-level settings by name, before the file's.
        overrides: `table.field=value` each, before both; the value is read as TOML, else as text.

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or impossible; one sentence
            names it.
    """
    values = _read(file) if file is not None else {}
    for name, value in given.items():
        _put(values, name.split("."), value, name)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not (equals and name.strip()):
            raise ConfigError(
                f"--set {override!r} is no TABLE.FIELD=VALUE; write --set optimiser.alpha=0.1"
            )
        _put(values, name.strip().split("."), _value(text), f"--set {name.strip()}")
    if "model" not in values:
        raise ConfigError("no model is named; set model in the file, or --model FOLDER")
    try:
        return TrainSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_sentence(error, file)) from None


def differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Name what differs between two dumps of settings, each with both values.

    What changes only how a run is carried out is left out.
    """
    was, now = _flat(recorded), _flat(asked)
    return [
        f"{name} ({_shown(was.get(name))}, now {_shown(now.get(name))})"
        for name in dict.fromkeys([*was, *now])
        if was.get(name) != now.get(name) and name not in _HOW_ONLY
    ]


def reference_configs() -> dict[str, Path]:
    """Return the files that come with the package, by name."""
    return {file.stem: file for file in sorted(Path(__file__).with_name("configs").glob("*.toml"))}


def _read(file: Path) -> dict[str, Any]:
    ours = reference_configs()
    if not file.exists() and str(file) in ours:
        file = ours[str(file)]
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {str(file)!r} cannot be read: {error.strerror}; name a file, or one of "
            f"{', '.join(ours)}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {str(file)!r} is not UTF-8 text; convert it") from None
    except tomllib.TOMLDecodeError as error:
        where = str(error)[:1].lower() + str(error)[1:]
        raise ConfigError(f"--config {str(file)!r} is no TOML: {where}") from None


def _put(values: dict[str, Any], path: Sequence[str], value: object, name: str) -> None:
    *tables, last = path
    for table in tables:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{name}: {table!r} is a setting and no table; leave out what follows"
            )
        values = inner
    values[last] = value


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value
    return flat


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _sentence(error: ValidationError, file: Path | None) -> str:
    first = error.errors()[0]
    where = f"{file}: " if file is not None else ""
    path = [str(each) for each in first["loc"]]
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return f"{where}{message}"
    if first["type"] == "extra_forbidden":
        known = list(_table_of(path[:-1]).model_fields)
        near = get_close_matches(path[-1], known, n=1)
        hint = f"perhaps {near[0]!r}; " if near else ""
        place = f" in [{'.'.join(path[:-1])}]" if path[:-1] else ""
        return f"{where}unknown setting {path[-1]!r}{place}; {hint}known: {', '.join(known)}"
    if first["type"] == "missing":
        return f"{where}{'.'.join(path)} is missing; set it"
    return f"{where}{'.'.join(path)} {_shown(first['input'])}: {message[0].lower()}{message[1:]}"


def _table_of(path: Sequence[str]) -> type[BaseModel]:
    table: type[BaseModel] = TrainSettings
    for name in path:
        annotation = table.model_fields[name].annotation
        options = getattr(annotation, "__args__", (annotation,))
        table = next(
            each for each in options if isinstance(each, type) and issubclass(each, BaseModel)
        )
    return table
