"""A long text that takes no more lines of a terminal than it was given."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pdr_graph.cli.text import safe

INDENT = 2


@dataclass(frozen=True, slots=True)
class Clipped:
    """Model text, indented; its end is left out where it is longer than `lines`."""

    text: str
    lines: int | None
    """None shows all of it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = safe(self.text).strip()
        width = max(8, options.max_width - INDENT)
        # Wrapping a million characters to show six lines would take seconds.
        part = text if self.lines is None else text[: self.lines * width]
        wrapped = Text(part).wrap(console, width)
        shown = wrapped if self.lines is None else wrapped[: self.lines]
        for line in shown:
            yield Text(" " * INDENT) + line
        if len(part) < len(text) or len(shown) < len(wrapped):
            yield Text(f"{' ' * INDENT}… of {len(text):,} characters; --full shows all", "dim")
