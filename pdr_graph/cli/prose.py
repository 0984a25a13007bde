"""Text of a model, wrapped to its terminal and, where that is asked for, cut to a few lines."""

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pdr_graph.cli.text import safe


@dataclass(frozen=True, slots=True)
class Prose:
    """A text that is read as nothing but text."""

    text: str
    lines: int | None = None
    """Lines of a terminal that it may take; None shows all of it."""
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, margin = safe(self.text).strip(), " " * self.indent
        if self.lines is None and not console.is_terminal:
            # Into a file or a pipe goes what the model wrote, line by line.
            for written in text.split("\n"):
                yield unbroken(Text(margin + written))
            return
        width = max(8, options.max_width - self.indent)
        # Wrapping a million characters to show six lines would take seconds.
        part = text if self.lines is None else text[: self.lines * width]
        wrapped = Text(part).wrap(console, width)
        shown = wrapped if self.lines is None else wrapped[: self.lines]
        for line in shown:
            yield Text(margin) + line
        if len(part) < len(text) or len(shown) < len(wrapped):
            yield Text(f"{margin}… of {len(text):,} characters, see --full", "dim")


def unbroken(line: Text) -> Text:
    """Return a line that stays one line: commands and names are there to be copied."""
    line.no_wrap, line.overflow = True, "ignore"
    return line
