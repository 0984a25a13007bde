"""Where the command line writes: results on standard output, all else on standard error."""

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import IO, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from pdr_graph.cli.text import one_line

BROKEN_PIPE = 141
"""Exit code of a process that SIGPIPE ended, as shells report it."""


class _StandardError(Console):
    """A console that falls silent when nobody reads it: a run must not die of that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(sys.stderr)


class _StandardOutput(Console):
    """A console that leaves a broken pipe to whoever writes."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _standard_error() -> Console:
    return _StandardError(stderr=True, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True, slots=True)
class Output:
    """What one command says, and where."""

    json: bool = False
    """Standard output holds one JSON object and nothing else."""
    quiet: bool = False
    """Standard error holds errors and nothing else."""
    stderr: Console = field(default_factory=_standard_error)

    def say(self, line: str) -> None:
        """Write a line of information on standard error, unless that is to be quiet."""
        if not self.quiet:
            self.tell(line, "dim")

    def tell(self, line: str, style: str = "", *, to_copy: bool = False) -> None:
        """Write a line on standard error, whatever was asked.

        Args:
            line: Text of whatever origin.
            style: As rich names it.
            to_copy: Never wrap it, not even on a terminal: it holds a command.
        """
        # Who reads lines by a program must find each whole.
        whole = to_copy or not self.stderr.is_terminal
        self.stderr.print(Text(one_line(line), style), soft_wrap=whole)

    def show(self, *parts: RenderableType) -> None:
        """Write renderables on standard output."""
        console = _StandardOutput(highlight=False, markup=False, emoji=False)
        with _written_out():
            for part in parts:
                console.print(part, crop=False)

    def show_json(self, value: Any) -> None:  # Any: plain JSON data
        """Write one JSON value on standard output, in ASCII: safe in any locale and terminal."""
        with _written_out():
            sys.stdout.write(json.dumps(value, indent=2) + "\n")

    def show_json_line(self, value: Any) -> None:  # Any: plain JSON data
        """Write one JSON value as a line of standard output, for a reader who takes many."""
        with _written_out():
            sys.stdout.write(json.dumps(value) + "\n")


@contextmanager
def _written_out() -> Iterator[None]:
    """Flush standard output, and end the command quietly where its reader has left.

    Raises:
        typer.Exit: the pipe is broken.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(BROKEN_PIPE) from None
        raise


def _discard(stream: IO[str]) -> None:
    """Point a broken stream at nothing, so that the interpreter can flush it when it ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


class LogLines(logging.Handler):
    """Shows what the packages below log as lines on standard error, without tracebacks."""

    def __init__(self, output: Output, level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._output = output
        self._said: set[str] = set()

    def install(self) -> None:
        """Take the place of an earlier one."""
        root = logging.getLogger()
        for each in root.handlers:
            if isinstance(each, LogLines):
                root.removeHandler(each)
        root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; the same words are said once."""
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        if line in self._said:
            return
        self._said.add(line)
        if record.levelno >= logging.ERROR:
            self._output.tell(line)
        else:
            self._output.say(line)


def joined(parts: Sequence[str]) -> str:
    """Join the parts of a line that are not empty."""
    return " · ".join(part for part in parts if part)
