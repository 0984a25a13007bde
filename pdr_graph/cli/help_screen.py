"""The help of a command: each option whole, whatever the width of the terminal.

typer's own tables give each part of an option a column, and cut names and examples to fit them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

_Row = tuple[str, str, bool]
"""A name, what is said of it, and whether it is required."""

NAMES, GAP = 26, 2
"""Columns of names, and after them; a longer name has a line of its own."""
SHORT = 12
"""Columns of names that are all short."""
WIDE, WIDEST = 72, 100
"""Columns from which names and texts stand side by side, and the longest line."""
INDENT = 6
"""Of a text beneath its name."""


class CommandWithHelp(TyperCommand):
    """A command that shows its help by itself."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # Any: typer's own click
        """Write the help."""
        formatter.write(_screen(self, ctx))


class GroupWithHelp(TyperGroup):
    """All commands, with a line on each."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # Any: typer's own click
        """Write the help."""
        formatter.write(_screen(self, ctx))


def _screen(command: Any, context: Any) -> str:  # Any: typer's own click
    from rich.console import Console

    console = Console(highlight=False, emoji=False, soft_wrap=False)
    width = min(console.width, WIDEST)
    with console.capture() as captured:
        for part in _parts(command, context, width):
            console.print(part, width=width, crop=False)
    return captured.get()


def _parts(command: Any, context: Any, width: int) -> Iterator[Any]:  # Any: what rich prints
    from rich.text import Text

    arguments = [each for each in command.get_params(context) if hasattr(each, "nargs")]
    options = [each for each in arguments if each.param_type_name == "option" and not each.hidden]
    arguments = [each for each in arguments if each.param_type_name == "argument"]
    commands = getattr(command, "commands", {})
    usage = [*map(_usage, arguments), *(["COMMAND"] if commands else [])]
    yield Text(" ".join(["Usage:", context.command_path, "[OPTIONS]", *usage]), "bold")
    yield Text()
    yield from _prose(command.help or "")
    if arguments:
        rows = [(_name_of(each), each.help or "", each.required) for each in arguments]
        yield from _section("Arguments", rows, width)
    panels: dict[str, list[_Row]] = {}
    for each in options:
        row = (_flags(each), each.help or "", each.required)
        panels.setdefault(each.rich_help_panel or "Options", []).append(row)
    for title, rows in panels.items():
        yield from _section(title, rows, width)
    rows = [(name, _first_paragraph(each.help or ""), False) for name, each in commands.items()]
    yield from _section("Commands", rows, width)


def _usage(argument: Any) -> str:
    name = f"{_name_of(argument)}{'...' if argument.nargs == -1 else ''}"
    return name if argument.required else f"[{name}]"


def _name_of(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    """Return how an option is typed: `-q, --quiet`, `--a / --no-a`, `--widths LIST`."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    metavar = "" if option.is_flag else option.metavar or "TEXT"
    return f"{names} {metavar}".rstrip()


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _prose(text: str) -> Iterator[Any]:
    """Yield the paragraphs; examples, which begin with an option, keep their lines."""
    from rich.padding import Padding
    from rich.text import Text

    for paragraph in filter(str.strip, text.split("\n\n")):
        lines = paragraph.strip("\n").splitlines()
        if lines[0].strip().startswith("--"):
            yield from (Padding(Text(line.strip()), (0, 0, 0, 4)) for line in lines)
        else:
            yield Text(" ".join(line.strip() for line in lines))
        yield Text()


def _section(title: str, rows: Sequence[_Row], width: int) -> Iterator[Any]:
    """Yield names and texts: side by side where there is room, else one beneath the other."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    longest = max(len(name) for name, _, _ in rows)
    names = longest if longest <= SHORT else NAMES
    yield Text(title, "bold")
    for name, text, required in rows:
        said = Text.from_markup(f"{text} (required)" if required else text)
        if width - names < WIDE - NAMES:
            yield Padding(Text(name, "cyan"), (0, 0, 0, GAP))
            yield Padding(said, (0, 0, 0, INDENT))
            continue
        beside = len(name) <= names
        if not beside:
            yield Padding(Text(name, "cyan"), (0, 0, 0, GAP))
        line = Table.grid(padding=(0, GAP, 0, 0))
        line.add_column(width=names)
        line.add_column()
        line.add_row(Text(name if beside else "", "cyan"), said)
        yield Padding(line, (0, 0, 0, GAP))
    yield Text()
