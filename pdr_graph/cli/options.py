"""One command-line option for each field of a pydantic model.

A new field of `PDRConfig` or `Settings` becomes an option by itself: its name in kebab case, its
docstring as the help. An option that was not given is not there at all, so that presets and the
environment keep their say; pydantic checks what was given.
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings
from rich.markup import escape

from pdr_graph.config import PDRConfig
from pdr_graph.serve.options import ServeOptions
from pdr_graph.servers.options import UpOptions
from pdr_graph.settings import Settings
from pdr_graph.strategies import PRESETS

Given = dict[str, object]
"""Fields that the user named, and their values, still to be checked."""

Command = TypeVar("Command", bound=Callable[..., Any])  # Any: commands take what they declare

NONE = "none"
"""Says None where a field admits it."""

_PANELS = {
    "Budgets": {
        "max_tokens",
        "solution_tokens",
        "thinking_token_budget",
        "max_total_tokens",
        "deadline_s",
    },
    "Sampling": {"temperature", "top_p", "seed"},
    "Endpoint": {"base_url", "model", "api_key", "tokenizer", "max_in_flight", "retries"},
    "Storage": {"redis_url", "data_dir", "keep_hours"},
    "Server": {*ServeOptions.model_fields, *UpOptions.model_fields} - {"keep_hours"},
}
STRATEGY, OUTPUT, BUDGET_PANEL = "Strategy", "Output", "Budgets"

OPTION_NAMES = {"redis_url": "checkpoint"}
"""Options that are called otherwise than their field."""

_SET_BY_PRESETS = {name for fields in PRESETS.values() for name in fields}


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """The fields of one model that a command takes as options."""

    model: type[BaseModel]
    names: tuple[str, ...]


CONFIG = OptionGroup(PDRConfig, tuple(PDRConfig.model_fields))
SETTINGS = OptionGroup(Settings, tuple(Settings.model_fields))
STORAGE = OptionGroup(Settings, ("redis_url", "data_dir"))


DATA_DIR = OptionGroup(Settings, ("data_dir",))
PLACES = OptionGroup(Settings, ("base_url", "model", "api_key", "redis_url", "data_dir"))
UP = OptionGroup(UpOptions, tuple(name for name in UpOptions.model_fields if name != "cache_dir"))
SIZING = OptionGroup(
    PDRConfig,
    (
        *("preset", "widths", "distiller", "finish", "verifier"),
        *("kappa", "max_tokens", "solution_tokens"),
    ),
)
"""The fields that a model server's context and batch are sized by."""
SERVE = OptionGroup(ServeOptions, tuple(ServeOptions.model_fields))
DEFAULTS = OptionGroup(
    PDRConfig,
    tuple(
        name for name in PDRConfig.model_fields if name not in _SET_BY_PRESETS | {"preset", "seed"}
    ),
)
"""What may hold for all presets alike."""


def takes(**groups: OptionGroup) -> Callable[[Command], Command]:
    """Put options in place of the named parameters of a command, which receive what was given."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        options = {
            name: _parameter(name, group.model.model_fields[name], group.model)
            for group in groups.values()
            for name in group.names
        }
        kept = [each for each in own.parameters.values() if each.name not in groups]

        @functools.wraps(command)
        def with_options(**values: Any) -> Any:  # Any: as the command declares
            for parameter, group in groups.items():
                typed = {name: values.pop(name) for name in group.names}
                values[parameter] = {
                    name: _value(group.model.model_fields[name], value)
                    for name, value in typed.items()
                    if value is not None
                }
            return command(**values)

        parameters = [
            each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in [*kept, *options.values()]
        ]
        with_options.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by inspect
        with_options.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_options  # type: ignore[return-value]  # same calls, other signature

    return decorate


def flag_of(name: str) -> str:
    """Return the option of a field."""
    return "--" + OPTION_NAMES.get(name, name).replace("_", "-")


def _parameter(name: str, field: FieldInfo, model: type[BaseModel]) -> inspect.Parameter:
    inner = _inner(field)
    flag = flag_of(name)
    # Text for all but flags: pydantic checks values, and its sentence names the field.
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if inner is bool else flag,
        help=escape(_help(name, field, model)),
        metavar=None if inner is bool else _metavar(inner),
        rich_help_panel=_panel(name),
        show_default=False,
    )
    annotation = Annotated[bool | None if inner is bool else str | None, option]  # type: ignore[valid-type]  # built at run time
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _panel(name: str) -> str:
    return next((panel for panel, names in _PANELS.items() if name in names), STRATEGY)


def _help(name: str, field: FieldInfo, model: type[BaseModel]) -> str:
    text = " ".join((field.description or "").split())
    if issubclass(model, BaseSettings):
        return f"{text} ({model.model_config['env_prefix']}{name.upper()})"
    if name == "preset":
        return f"{text} One of: {', '.join(PRESETS)}. ({field.default})"
    if name in _SET_BY_PRESETS:
        return f"{text} (from the preset)"
    return f"{text} ({NONE if field.default is None else _shown(field.default)})"


def _shown(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _metavar(inner: object) -> str:
    names: Mapping[object, str] = {int: "INTEGER", float: "NUMBER", tuple: "LIST"}
    return names.get(inner, "TEXT")


def _value(field: FieldInfo, value: object) -> object:
    """Read what was typed as far as pydantic would not: lists, and None."""
    if not isinstance(value, str):
        return value
    if _inner(field) is tuple:
        return tuple(part.strip() for part in value.split(",")) if value.strip() else ()
    return None if value.lower() == NONE and _optional(field) else value


def _inner(field: FieldInfo) -> object:
    """Return the type of a field without its None, `tuple` for any tuple."""
    annotation: Any = field.annotation  # Any: whatever a model declares
    if _optional(field):
        annotation = next(each for each in get_args(annotation) if each is not types.NoneType)
    return get_origin(annotation) or annotation


def _optional(field: FieldInfo) -> bool:
    annotation = field.annotation
    return get_origin(annotation) in {Union, types.UnionType} and types.NoneType in get_args(
        annotation
    )
