"""Where the command line writes: results on standard output, all else on standard error.

Text of a model or of a stranger is made safe first. It may hold escape sequences that repaint the
terminal, set its title or reverse the reading order. Sequences are removed as a whole, other
control characters one by one; line breaks and tabs stay.
"""

import json
import logging
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import typer
from rich.box import Box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from pdr_graph.cli import readable_in_any_encoding
from pdr_graph.errors import ConfigError, redacted

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC and kin: title, clipboard
    r"|\x1b[ -/]*[0-~]?"  # two-byte sequences, or a bare escape
)
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u202a-\u202e\u2066-\u2069"  # bidi embeddings and overrides: text that reads otherwise
    "\ufff9-\ufffb]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def safe(text: str) -> str:
    """Return `text` without anything that acts on a terminal, and encodable as UTF-8."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROLS.sub("", _SEQUENCES.sub("", text))
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Return safe text with all white space folded into single spaces."""
    return " ".join(safe(text).split())


_PIECES = re.compile(
    r"(?:→ )?(?:`[^`]*`"  # a command in a sentence
    r"|pip install (?:'[^']*'|\S+)"  # the command of `install_command`, which no marks enclose
    r"|(?<!\w)'[^']*'(?!\w)"  # a path or a value, as `repr` writes it
    r"|\S)+"
)
"""What stays in one piece: a newline inside a command or a path would be copied with it."""


def wrapped(text: str, width: int) -> list[str]:
    """Break a text at its spaces, but not within commands and quotations.

    Args:
        text: One line.
        width: Columns of each line. A longer piece has a line of its own, which the terminal shows
            on several without a newline.
    """
    lines = [""]
    for piece in _PIECES.findall(text):
        longer = f"{lines[-1]} {piece}" if lines[-1] else piece
        if not lines[-1] or cell_len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


PIPE_WIDTH = 10_000
"""Columns of a pipe or file: no line needs to be broken there."""
BROKEN_PIPE = 141
"""Exit code of a process that SIGPIPE ended, as shells report it."""


class _StandardError(Console):
    """A console that falls silent when nobody reads it: that must not stop a run."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(sys.stderr)


class _StandardOutput(Console):
    """A console that raises where its pipe is broken, and gives a pipe all the room it needs."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = PIPE_WIDTH

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _standard_error() -> Console:
    return _StandardError(stderr=True, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True, slots=True)
class Output:
    """Where one command writes."""

    json: bool = False
    """Standard output holds one JSON object and nothing else."""
    quiet: bool = False
    """Standard error holds errors and nothing else."""
    stderr: Console = field(default_factory=_standard_error)

    @property
    def is_live(self) -> bool:
        """Whether standard error is a terminal that lines may be redrawn on."""
        return self.stderr.is_terminal and not self.stderr.is_dumb_terminal and not self.quiet

    @property
    def width(self) -> int:
        """Columns of standard output."""
        return _StandardOutput().width

    def say(self, line: str, *, to_copy: bool = False) -> None:
        """Write a line of information on standard error, unless --quiet is given."""
        if not self.quiet:
            self.tell(line, "" if to_copy else "dim", to_copy=to_copy)

    def tell(self, line: str, style: str = "", *, to_copy: bool = False) -> None:
        """Write a line on standard error, even with --quiet.

        Args:
            line: Text of any origin.
            style: As rich names it.
            to_copy: Never wrap it, not even on a terminal: it is a command, or ends with a path.
        """
        line = one_line(line)
        # A program that reads lines must find each whole.
        if self.stderr.is_terminal and not to_copy:
            line = "\n".join(wrapped(line, self.stderr.width))
        self.stderr.print(Text(line, style), soft_wrap=True)

    def show(self, *parts: RenderableType) -> None:
        """Write renderables on standard output."""
        console = _StandardOutput()
        with _written_out():
            for part in parts:
                console.print(part, crop=False)

    def show_json(self, value: Any) -> None:  # Any: plain JSON data
        """Write one JSON value on standard output, in ASCII: safe in any locale and terminal."""
        with _written_out():
            sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def show_json_line(self, value: Any) -> None:  # Any: plain JSON data
        """Write one JSON value as one line of standard output."""
        with _written_out():
            sys.stdout.write(json.dumps(value) + "\n")


@contextmanager
def _written_out() -> Iterator[None]:
    """Flush standard output, and end the command quietly where its reader has left.

    Raises:
        typer.Exit: the pipe is broken.
    """
    readable_in_any_encoding()
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(BROKEN_PIPE) from None
        raise


def refuse_place(file: Path, option: str, named: Path | None = None) -> None:
    """Refuse a file that cannot be written, before anything is started.

    Args:
        file: What will be written; its folder will be made.
        option: The option that names the file.
        named: What was typed, where that is not the file itself.

    Raises:
        ConfigError: it is a folder, or a file stands where its folder should be.
    """
    above = next((each for each in file.absolute().parents if each.exists()), Path("/"))
    if file.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"{option} {str(named or file)!r} cannot be written; name another place")


def _discard(stream: IO[str]) -> None:
    """Point a broken stream at nothing, so that the interpreter can flush it when it ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


class LogLines(logging.Handler):
    """Shows the log records of all packages as lines on standard error, without tracebacks.

    Records that are marked `even_if_quiet` are shown in any case.
    """

    def __init__(self, output: Output, level: int = logging.WARNING) -> None:
        super().__init__(min(level, logging.WARNING))
        self._output = output
        self._least = level
        self._said: set[str] = set()

    def install(self) -> None:
        """Install this handler in place of an earlier one."""
        root = logging.getLogger()
        for each in root.handlers:
            if isinstance(each, LogLines):
                root.removeHandler(each)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; the same line is written once."""
        line = redacted(f"{record.levelname.lower()}: {record.getMessage()}")
        always = getattr(record, "even_if_quiet", False)
        if line in self._said or (record.levelno < self._least and not always):
            return
        self._said.add(line)
        if record.levelno >= logging.ERROR or always:
            self._output.tell(line)
        else:
            self._output.say(line)


def joined(parts: Sequence[str]) -> str:
    """Join the parts of a line that are not empty."""
    return " · ".join(part for part in parts if part)


# Only the rule under the head is drawn; the spaces are what a box's other lines would be.
_UNDERLINED = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")


def plain_table(*, gap: int = 2) -> Table:
    """Return an empty table with `gap` spaces between its columns."""
    # A box draws one space between columns by itself.
    return Table(box=_UNDERLINED, pad_edge=False, show_edge=False, padding=(0, gap - 1, 0, 0))


def fitted(
    titles: Sequence[str],
    rows: Sequence[Sequence[Text]],
    width: int,
    *,
    giving: Sequence[str],
    least: int = 8,
) -> Table | None:
    """Return a table of one line a row; None where it does not fit.

    Args:
        titles: Titles of the columns.
        rows: Their cells, which are cut where they must be.
        width: Columns of the terminal.
        giving: The columns that may be cut, the first to give way first.
        least: Columns that each of these keeps.
    """
    gap = 2
    widths = {
        title: max(len(title), *(row[index].cell_len for row in rows))
        for index, title in enumerate(titles)
    }
    excess = sum(widths.values()) + gap * (len(titles) - 1) - width
    for title in filter(widths.__contains__, giving):
        given = min(max(0, excess), max(0, widths[title] - max(least, len(title))))
        widths[title], excess = widths[title] - given, excess - given
    if excess > 0:
        return None
    table = plain_table(gap=gap)
    for title in titles:
        table.add_column(title, no_wrap=True, width=widths[title], overflow="ellipsis")
    for row in rows:
        table.add_row(*row)
    return table


def table_of(
    titles: Iterable[str],
    rows: Iterable[Iterable[str | Text]],
    *,
    text: Collection[str] = (),
    gap: int = 2,
) -> Table:
    """Return a table of numbers; the first column, and those named in `text`, hold text."""
    table = plain_table(gap=gap)
    for index, title in enumerate(titles):
        if index == 0 or title in text:
            table.add_column(title, overflow="fold")
        else:
            # A long name in the first column is broken, and its figures stand beside its end.
            end: Literal["top", "bottom"] = "top" if text else "bottom"
            table.add_column(title, justify="right", no_wrap=True, vertical=end)
    for row in rows:
        table.add_row(*row)
    return table


@dataclass(frozen=True, slots=True)
class Prose:
    """Text of a model, wrapped to the terminal; never read as markup."""

    text: str
    lines: int | None = None
    """Most lines to show; None shows all."""
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text, margin = safe(self.text).strip(), " " * self.indent
        if self.lines is None and not console.is_terminal:
            # A file or a pipe gets the lines that the model wrote.
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


@dataclass(frozen=True, slots=True)
class Sentence:
    """Text of ours, wrapped to the terminal; commands and paths in it stay whole."""

    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in wrapped(one_line(self.text), options.max_width):
            yield unbroken(Text(line, self.style))


def unbroken(line: Text) -> Text:
    """Keep a line on one line, so that the command or name in it can be copied."""
    line.no_wrap, line.overflow = True, "ignore"
    return line
