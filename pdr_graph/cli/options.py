"""Command-line options made from pydantic models.

A command is a model, and so are the settings and the config that it takes. Each field becomes an
option: its name in kebab case, its docstring as the help text. A field that was not given is left
out, so that the values of presets and of the environment still apply. pydantic checks what was
given.
"""

import inspect
import logging
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings
from rich.markup import escape

from pdr_graph.cli.completion import Completer, completer
from pdr_graph.config import PRESETS, PDRConfig, make_config, preset
from pdr_graph.config import STRATEGY as OF_PRESETS
from pdr_graph.errors import ConfigError
from pdr_graph.settings import StrategySettings, strategy_variables, variable_of
from pdr_graph.validation import Fault

Given = dict[str, object]
"""Fields that the user named, and their values, still to be checked."""

NONE = "none"
"""What a user types for None, for fields that admit it."""

FIRST = "Options"
"""The panel that the help shows first."""
STRATEGY = "Strategy"

_PANELS: Mapping[str, set[str]] = {
    FIRST: set(),
    STRATEGY: {"judge", "judge_url", "judge_weights"},
    "Prompts": {"prompts", "draft_prompt", "improve_prompt", "distill_prompt", "judge_prompt"},
    "Budgets": {
        *("max_tokens", "solution_tokens", "thinking_token_budget", "max_total_tokens"),
        *("deadline_s", "b_seq", "b_total"),
    },
    "Sampling": {"temperature", "top_p", "seed"},
    "Endpoint": {
        *("base_url", "model", "model_for", "models", "price", "api_key", "api_key_file"),
        *("tokenizer", "max_in_flight", "retries", "priority", "idle_timeout_s"),
        "reply_timeout_s",
    },
    "Storage": {"redis_url", "encryption_key_file", "data_dir", "keep_hours", "max_bytes"},
    "Settings": {"env_file"},
    "Cluster": {"ray", "ray_workers"},
    "Output": {
        *("trace", "log_file", "otel", "otel_content", "as_json", "answer_only", "quiet"),
    },
}
"""Fields that have a panel of their own in every command, in the order of the help."""

OPTION_NAMES = {"redis_url": "checkpoint", "_env_file": "env_file"}
"""Options of shared models whose name differs from that of their field."""

_METAVARS: Mapping[object, str] = {int: "INTEGER", float: "NUMBER", tuple: "LIST"}
_REPEATED: Mapping[str, str] = {"model_for": "ROLE=NAME[@URL]", "price": "NAME=IN/OUT"}
"""Fields of shared models that are given once for each of their values, with what is typed."""
_SET_BY_PRESETS = {name for fields in PRESETS.values() for name in fields}


@dataclass(frozen=True, slots=True)
class OptionGroup:
    """Fields of another model that a command takes, as one field of its own."""

    model: type[BaseModel]
    names: tuple[str, ...]
    panel: str = STRATEGY
    """Where the help shows what has no panel of its own."""
    defaults: Mapping[str, str] | None = None
    """What the help shows as the default of a field, if it is not the model's default."""


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field of a command is typed, where its name and type do not say it."""

    name: str | None = None
    metavar: str | None = None
    short: str | None = None
    """Short form, such as `-q`; None if there is none."""


@dataclass(frozen=True, slots=True)
class Argument:
    """Marks a field that is typed without an option."""

    metavar: str | None = None


@dataclass(frozen=True, slots=True)
class Implied:
    """Marks a field that cannot be typed: the command sets it."""


class Command(BaseModel):
    """What one command was asked to do; its docstring is the help of the command."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True
    )

    first: ClassVar[tuple[str, ...]] = ()
    """Fields that the help shows first, in this order; empty: all of its own fields."""
    panel: ClassVar[str] = FIRST
    """Where the help shows its own fields that are not first and have no other panel."""
    logs: ClassVar[int] = logging.WARNING
    """Least level of the log records that are shown."""

    as_json: Annotated[bool, Flag("--json")] = False
    """Write one JSON object."""
    quiet: Annotated[bool, Flag(short="-q")] = False
    """Say nothing on standard error but errors. The result is written all the same."""

    @property
    def is_quiet(self) -> bool:
        """Whether nothing but errors is said on standard error."""
        return self.quiet


class SettingsCommand(Command):
    """A command that reads the settings of this process."""

    env_file: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Read the settings from this file, in place of `.env` in the current folder. It is trusted."""

    @property
    def settings_file(self) -> Path | None:
        """The file that is named to be read; None is the folder's own."""
        return self.env_file


AnyCommand = TypeVar("AnyCommand", bound=Command)


def takes(
    model: type[AnyCommand],
) -> Callable[[Callable[[AnyCommand], None]], Callable[..., None]]:
    """Make a function of a command take the command's fields as options."""

    def decorate(carry_out: Callable[[AnyCommand], None]) -> Callable[..., None]:
        def with_options(**typed: Any) -> None:  # Any: text, flags, and lists of text
            carry_out(_command(model, typed))

        parameters = _ordered(model)
        with_options.__doc__ = model.__doc__
        with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by inspect
        with_options.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_options

    return decorate


def flag_of(name: str) -> str:
    """Return the option of a field of a shared model."""
    return "--" + OPTION_NAMES.get(name, name).replace("_", "-")


def with_variables(
    given: Given, group: OptionGroup, env_file: Path | None, say: Callable[[str], None]
) -> Given:
    """Return the strategy of a command: what was typed, then the variables `PDR_…`, then `.env`.

    If a preset is typed, variables that would change its strategy are left out.

    Args:
        given: What was typed.
        group: The fields that the command takes.
        env_file: A file that is read in place of `.env`; None is that one.
        say: Receives a line on the variables that were used.

    Raises:
        ConfigError: a variable has a value that does not fit; the sentence names it.
    """
    taken: dict[str, tuple[str, object]] = {}
    unused = []
    for name, text in strategy_variables(env_file).items():
        if name in given:
            continue
        variable = variable_of(StrategySettings, name)
        if name not in group.names or ("preset" in given and name in OF_PRESETS):
            unused.append(variable)
            continue
        value = _value(PDRConfig.model_fields[name], text)
        try:
            preset(text) if name == "preset" else make_config(**{name: value})
        except ConfigError as error:
            raise ConfigError(f"{variable}: {error}") from None
        short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
        taken[name] = f"{variable}={' '.join(short.split())}", value
    if taken:
        say(f"taken from the environment: {', '.join(shown for shown, _ in taken.values())}")
    if unused:
        say(f"not used by this command: {', '.join(unused)}")
    return {**{name: value for name, (_, value) in taken.items()}, **given}


_SHOWN = 40
"""Characters of a variable's value that are shown."""


def _command(model: type[AnyCommand], typed: Mapping[str, Any]) -> AnyCommand:
    """Make a command of what was typed.

    Raises:
        ConfigError: a value does not fit; the sentence names its option.
    """
    values: dict[str, object] = {}
    for name, field in model.model_fields.items():
        group = _mark(field, OptionGroup)
        if group is not None:
            fields = group.model.model_fields
            values[name] = {
                each: _value(fields[each], typed[each])
                for each in group.names
                if typed[each] is not None and typed[each] != []
            }
        elif typed.get(name) is not None:
            values[name] = typed[name]
    try:
        command = model.model_validate(values)
    except ValidationError as error:
        fault = Fault.of(error)
        name = fault.path[0]
        called = _own_name(name, model.model_fields[name])
        raise ConfigError(fault.sentence(called)) from None
    if isinstance(command, SettingsCommand) and command.settings_file is not None:
        for name, field in model.model_fields.items():
            group = _mark(field, OptionGroup)
            if group is not None and issubclass(group.model, BaseSettings):
                getattr(command, name)["_env_file"] = command.settings_file
    return command


def _ordered(model: type[Command]) -> list[inspect.Parameter]:
    """Return the parameters of a command: arguments, then panel by panel."""
    found = list(_parameters(model))
    order = [FIRST, *(panel for panel, _ in found if panel not in _PANELS), *_PANELS]

    def place(each: tuple[str, inspect.Parameter]) -> tuple[int, int]:
        panel, name = each[0], each[1].name
        place = model.first.index(name) if name in model.first else len(model.first)
        return order.index(panel), place

    return [parameter for _, parameter in sorted(found, key=place)]


def _parameters(model: type[Command]) -> Iterator[tuple[str, inspect.Parameter]]:
    """Yield each parameter of a command, with its panel."""
    for name, field in model.model_fields.items():
        group = _mark(field, OptionGroup)
        if group is not None:
            for each in group.names:
                panel = FIRST if each in model.first else _panel(each, group.panel)
                yield panel, _shared_option(each, group, panel)
        elif _mark(field, Implied) is None:
            own_first = name in model.first if model.first else name in model.__annotations__
            panel = FIRST if own_first else _panel(name, model.panel)
            yield panel, _own_option(name, field, panel)


def _own_option(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    inner, argument = _inner(field), _mark(field, Argument)
    text = " ".join((field.description or "").split())
    if field.default not in (None, False, ()) and not field.is_required():
        text = f"{text} ({field.default})"
    known = completer(name, field, is_argument=argument is not None)
    if argument is not None:
        made = typer.Argument(
            help=escape(text),
            metavar=argument.metavar or name.upper(),
            show_default=False,
            autocompletion=known,
        )
    else:
        flag = _mark(field, Flag) or Flag()
        names = [_own_name(name, field), *([flag.short] if flag.short else [])]
        made = _option(names, text, flag.metavar or _metavar(inner), panel, known)
    kind = bool if inner is bool else list[str] if inner is tuple else str
    return _parameter(name, kind, made, required=field.is_required())


def _shared_option(name: str, group: OptionGroup, panel: str) -> inspect.Parameter:
    field = group.model.model_fields[name]
    flag, inner = flag_of(name), _inner(field)
    both = f"{flag}/--no-{flag[2:]}" if inner is bool else flag
    known = completer(name, field, is_argument=False)
    metavar = _REPEATED.get(name, _metavar(inner))
    made = _option([both], _help(name, field, group), metavar, panel, known)
    # Text for all but flags: pydantic checks values, and its sentence names the field.
    kind: Any = list[str] if name in _REPEATED else bool if inner is bool else str
    return _parameter(name, kind, made, required=False)


def _option(
    names: Sequence[str], text: str, metavar: str, panel: str, known: Completer | None
) -> Any:  # Any: as typer has it
    return typer.Option(
        *names,
        help=escape(text),
        metavar=metavar,
        rich_help_panel=panel,
        show_default=False,
        autocompletion=known,
    )


def _parameter(name: str, kind: Any, made: Any, *, required: bool) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[kind if required else kind | None, made],
    )


def _own_name(name: str, field: FieldInfo) -> str:
    """Return what the user calls a field of a command."""
    if _mark(field, Argument) is not None:
        return name
    flag = _mark(field, Flag)
    return "--" + name.replace("_", "-") if flag is None or flag.name is None else flag.name


def _panel(name: str, otherwise: str) -> str:
    return next((panel for panel, names in _PANELS.items() if name in names), otherwise)


def _help(name: str, field: FieldInfo, group: OptionGroup) -> str:
    model, otherwise = group.model, (group.defaults or {}).get(name, field.default)
    if name == "preset":
        return f"The strategy: {', '.join(PRESETS)}. ({otherwise})"
    text = " ".join((field.description or "").split())
    if issubclass(model, BaseSettings):
        plain = isinstance(field.default, int | float | str) and field.default is not False
        default = f"{field.default}; " if plain else ""
        return f"{text} ({default}{model.model_config['env_prefix']}{name.upper()})"
    if name in _SET_BY_PRESETS:
        return f"{text} (from the preset)"
    if field.default == "":
        return text
    return f"{text} ({NONE if field.default is None else field.default})"


def _metavar(inner: object) -> str:
    return "" if inner is bool else _METAVARS.get(inner, "TEXT")


def _value(field: FieldInfo, value: object) -> object:
    """Read what was typed as far as pydantic would not: lists, and None."""
    if not isinstance(value, str):
        return value
    if _inner(field) is tuple:
        return tuple(part.strip() for part in value.split(",")) if value.strip() else ()
    return None if value.lower() == NONE and _optional(field) else value


Mark = TypeVar("Mark", OptionGroup, Flag, Argument, Implied)


def _mark(field: FieldInfo, kind: type[Mark]) -> Mark | None:
    return next((each for each in field.metadata if isinstance(each, kind)), None)


def _inner(field: FieldInfo) -> object:
    """Return the type of a field without its None and without what a list or tuple holds."""
    annotation: Any = field.annotation  # Any: whatever a model declares
    if _optional(field):
        annotation = next(each for each in get_args(annotation) if each is not types.NoneType)
    return get_origin(annotation) or annotation


def _optional(field: FieldInfo) -> bool:
    annotation = field.annotation
    return get_origin(annotation) in {Union, types.UnionType} and types.NoneType in get_args(
        annotation
    )
