"""Writes the pages of the reference that the program itself knows best.

The command line comes from the commands, the settings from the models that check them, presets and
parts from their registries. The pages exist only in the site; a test reads them as well.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

PANELS_FIRST = ("Arguments", "Options")
"""Panels of a command's own parameters; those of shared fields follow."""


def pages() -> dict[str, str]:
    """Return the generated pages, Markdown by path in the documentation."""
    return {
        "reference/cli.md": cli_page(),
        "reference/settings.md": settings_page(),
        "reference/presets.md": presets_page(),
    }


def on_files(files: Any, config: Any) -> Any:  # Any: mkdocs is there only when a site is built
    """Add the pages to those of the folder."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


# ------------------------------------------------------------------------------- command line


def cli_page() -> str:
    """Lay out every command: how it is called, and its options by panel."""
    from typer.main import get_command

    from pdr_graph.cli.app import make_app

    commands: Mapping[str, Any] = get_command(make_app()).commands
    return "\n".join(
        [
            "# Command line",
            "",
            "Generated from the commands. `pdr-graph COMMAND --help` prints the same. Every option "
            "that names an environment variable can also be set by that variable or in a `.env` "
            "[that you trust](../guides/servers.md#whose-env-counts).",
            "",
            "| command | what it does |",
            "|---|---|",
            *(
                f"| [`{name}`](#pdr-graph-{name}) | {_prose(command.help)} |"
                for name, command in commands.items()
            ),
            "",
            *(line for name, command in commands.items() for line in _command(name, command)),
        ]
    )


def _command(name: str, command: Any) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    yield f"## pdr-graph {name}"
    yield ""
    yield _prose(command.help)
    yield ""
    yield "```text"
    yield " ".join(["pdr-graph", name, *command.collect_usage_pieces(context)])
    yield "```"
    yield ""
    panels: dict[str, list[str]] = {panel: [] for panel in PANELS_FIRST}
    for parameter in command.get_params(context):
        if not getattr(parameter, "hidden", False) and parameter.name != "help":
            panels.setdefault(_panel(parameter), []).append(_parameter(parameter))
    for panel, rows in panels.items():
        if rows:
            yield f"**{panel}**"
            yield ""
            yield (
                "| argument | meaning |" if panel == "Arguments" else "| option | value | meaning |"
            )
            yield "|---|---|" if panel == "Arguments" else "|---|---|---|"
            yield from rows
            yield ""


def _panel(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    panel = getattr(parameter, "rich_help_panel", None)
    return panel if isinstance(panel, str) else "Options"


def _parameter(parameter: Any) -> str:
    text = _prose(parameter.help)
    if parameter.param_type_name == "argument":
        return f"| `{_cell(_value(parameter))}` | {text} |"
    flags = [*parameter.opts, *parameter.secondary_opts]
    names = ", ".join(f"`{flag}`" for flag in sorted(flags, key=len))
    value = "" if parameter.is_flag else f"`{_cell(_value(parameter))}`"
    if parameter.required:
        text += " **Required.**"
    elif _shows_default(parameter):
        text += f" Default: `{parameter.default}`."
    return f"| {names} | {value} | {text} |"


def _value(parameter: Any) -> str:
    """Return what stands for the value in the usage."""
    if parameter.metavar:
        return str(parameter.metavar)
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    kind = parameter.type_descriptor.annotation
    return {int: "INTEGER", float: "NUMBER"}.get(kind, "TEXT")


def _shows_default(parameter: Any) -> bool:
    shown = getattr(parameter, "show_default", False) is not False
    return shown and parameter.default not in (None, (), [], False, ...)


# ----------------------------------------------------------------------------------- settings


def settings_page() -> str:
    """Lay out every model of settings: field, type, default and meaning."""
    from pdr_graph.config import PDRConfig
    from pdr_graph.serve.options import ServeOptions
    from pdr_graph.settings import Settings
    from pdr_graph.train.settings import TrainSettings

    lines = [
        "# Settings",
        "",
        "Generated from the models that check them. Values come from options, then from "
        "environment variables, then from the file `.env` in the current folder, then from the "
        "defaults below. "
        "[What a `.env` may set that you do not trust](../guides/servers.md#whose-env-counts) is "
        "listed with each group.",
        "",
    ]
    for title, model, text in (
        (
            "A run: PDRConfig",
            PDRConfig,
            "What one run is asked to do. Each field is an option of `pdr-graph solve` and of "
            "`preset(NAME, FIELD=VALUE)`. Defaults of a preset come before those below.",
        ),
        (
            "A process: Settings",
            Settings,
            "What a process is pointed at. Nothing here is recorded with a run.",
        ),
        (
            "Serving: ServeOptions",
            ServeOptions,
            "How `pdr-graph serve` serves.",
        ),
        ("Starting servers", _up_options(), "What `pdr-graph up` starts."),
        (
            "Training: TrainSettings",
            TrainSettings,
            "What `pdr-graph train` reads from its TOML file; `--set TABLE.FIELD=VALUE` comes "
            "before the file.",
        ),
    ):
        lines += [f"## {title}", "", text, "", *_harmless(model), *_model(model)]
    return "\n".join(lines)


def _up_options() -> type[BaseModel]:
    from pdr_graph.servers.options import UpOptions

    return UpOptions


def _harmless(model: Any) -> Iterator[str]:
    names = [name for name in model.model_fields if name in getattr(model, "harmless", ())]
    if names:
        listed = ", ".join(f"`{name}`" for name in names)
        yield f"A `.env` that you do not trust may set only: {listed}."
        yield ""


def _model(model: type[BaseModel], table: str = "") -> Iterator[str]:
    yield "| field | meaning | type | default |"
    yield "|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        inner = _nested(field)
        if inner is not None:
            nested.append((f"{table}{name}", inner))
            continue
        shown = f"`{table}{name}`"
        if issubclass(model, BaseSettings):
            shown += f"<br>`{_variable(model, name, field)}`"
        cells = (shown, _prose(field.description), f"`{_cell(_type(field))}`", _default(field))
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name, inner in nested:
        yield f"### {name}"
        yield ""
        yield _prose(inspect.getdoc(inner))
        yield ""
        yield from _model(inner, f"{name}.")


def _variable(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    return alias if isinstance(alias, str) else f"{model.model_config['env_prefix']}{name.upper()}"


def _nested(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model that a field holds, None where it holds a value."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    for kind in kinds:
        if inspect.isclass(kind) and issubclass(kind, BaseModel):
            return kind
    return None


def _type(field: FieldInfo) -> str:
    kind: Any = field.annotation  # Any: whatever a model declares
    text = kind.__name__ if inspect.isclass(kind) and not hasattr(kind, "__args__") else str(kind)
    text = re.sub(r"\b(?:typing|pathlib|pydantic\.types|pydantic)\.", "", text)
    return text.replace("NoneType", "None").replace("SecretStr", "str")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        made = field.default_factory
        return "empty" if made in (dict, list) else "the user's folder for it"
    default = field.default
    if default is None:
        return "none"
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# -------------------------------------------------------------------------- presets and parts


def presets_page() -> str:
    """Lay out the presets, and the parts that a config names, each by its docstring."""
    from pdr_graph.answers import ANSWER_KINDS
    from pdr_graph.config import PRESETS, preset
    from pdr_graph.distill import DISTILLERS
    from pdr_graph.finish import FINISHES, VERIFIERS

    lines = [
        "# Presets and parts",
        "",
        "Generated from the registries. A preset is a set of values of `PDRConfig`, and a part is "
        "a function that a config names. [How to write your own](../guides/embed.md#own-parts).",
        "",
        "## Presets",
        "",
        "| preset | widths | distiller | finish | further fields |",
        "|---|---|---|---|---|",
    ]
    for name, fields in PRESETS.items():
        config = preset(name)
        widths = ", ".join(map(str, config.widths)) or "none"
        further = ", ".join(
            f"`{key}={value}`"
            for key, value in fields.items()
            if key not in {"widths", "distiller", "finish"}
        )
        distiller = f"`{config.distiller}`" if "distiller" in fields else "–"
        lines.append(f"| `{name}` | {widths} | {distiller} | `{config.finish}` | {further} |")
    for title, parts in (
        ("Distillers", {name: each.distil for name, each in DISTILLERS.items()}),
        ("Finishes", FINISHES),
        ("Verifiers", VERIFIERS),
        ("Answer kinds", ANSWER_KINDS),
    ):
        lines += ["", f"## {title}", "", "| name | what it does |", "|---|---|"]
        lines += [f"| `{name}` | {_summary(part)} |" for name, part in parts.items()]
    return "\n".join([*lines, ""])


def _summary(part: object) -> str:
    return _prose((inspect.getdoc(part) or "").partition("\n\n")[0])


# --------------------------------------------------------------------------------------- text


def _prose(text: str | None) -> str:
    """Return a help text as Markdown for one cell: without rich's escapes, in one line."""
    return _cell(" ".join((text or "").replace("\\[", "[").split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
