"""Performs the first ten minutes with the package, and records what a terminal shows of them.

    python docs/walkthrough/record.py                 a new environment, installed from this clone
    python docs/walkthrough/record.py --here          the environment that runs this

Every command is run in a pseudo-terminal of 80 columns, in an empty home directory. What is on its
screen at the end becomes a picture, and for a command that draws as it goes also what was there
half way. Nothing is edited: a picture is the screen, and every command must end with exit code 0.
"""

import argparse
import fcntl
import io
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
COLUMNS, LINES = 80, 50
PATIENCE_S = 1800.0


@dataclass(frozen=True, slots=True)
class WalkStep:
    """A command of the walkthrough."""

    name: str
    """Of its picture."""
    words: tuple[str, ...]
    moving: bool = False
    """Whether it draws as it goes, so that a picture is taken half way too."""

    @property
    def line(self) -> str:
        """What a person types."""
        return shlex.join(self.words)


PROBLEM = "What is 48 - 19 + 27 - 6?"
STEPS = (
    WalkStep("doctor", ("pdr-graph", "doctor")),
    WalkStep("demo", ("pdr-graph", "demo"), moving=True),
    WalkStep("solve", ("pdr-graph", "solve", "--thread", "first", PROBLEM)),
    WalkStep("inspect", ("pdr-graph", "inspect", "first")),
    WalkStep("threads", ("pdr-graph", "threads", "--limit", "5")),
)
SHORT = (
    WalkStep("demo", ("pdr-graph", "demo", PROBLEM), moving=True),
    *STEPS[2:],
)
"""What a test can afford."""

_PIECE = re.compile(
    r"\x1b\[(?P<values>[0-9;?]*)(?P<kind>[A-Za-z])|(?P<control>[\r\n])|[^\x1b\r\n]+"
)
_BEGUN = re.compile(r"\x1b(?:\[[0-9;?]*)?\Z|\Z")


@dataclass(slots=True)
class Screen:
    """The lines of a terminal, as far as our commands draw on one.

    rich redraws whole lines: it goes up, erases, and writes from the left. Colours are kept as they
    came; any other control sequence is passed over.
    """

    lines: list[str] = field(default_factory=lambda: [""])
    row: int = 0
    fresh: bool = False
    """Whether the next text replaces the line, since the cursor is at its left."""

    def write(self, text: str) -> None:
        """Take what a command has sent."""
        for piece in _PIECE.finditer(text):
            match piece["kind"], piece["control"]:
                case "A", _:
                    self.row = max(0, self.row - int(piece["values"] or 1))
                case "K", _:
                    self.lines[self.row] = ""
                case "m", _:
                    self._put(piece[0])
                case None, "\r":
                    self.fresh = True
                case None, "\n":
                    self.row, self.fresh = self.row + 1, True
                    if self.row == len(self.lines):
                        self.lines.append("")
                case None, None:
                    self._put(piece[0])

    def _put(self, text: str) -> None:
        kept = "" if self.fresh else self.lines[self.row]
        self.lines[self.row], self.fresh = kept + text, False

    def text(self) -> str:
        """Return the lines with their colours, without empty ones at the end."""
        return "\n".join(self.lines).rstrip()


@dataclass(frozen=True, slots=True)
class Recording:
    """What a command has shown."""

    code: int
    screen: str
    """At the end."""
    half_way: str
    """In the middle of all that was drawn and taken off again."""


def recorded(words: tuple[str, ...], environment: Mapping[str, str], folder: Path) -> Recording:
    """Run a command in a terminal of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(words[0], words, dict(environment))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    frames: list[str] = []
    # A piece may end within a character, or within a sequence.
    decoder, begun, screen = getincrementaldecoder("utf-8")("replace"), "", Screen()
    for piece in _pieces(terminal):
        text = begun + decoder.decode(piece)
        whole = _BEGUN.sub("", text)
        begun = text[len(whole) :]
        screen.write(whole)
        frames.append(screen.text())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    end = screen.text()
    drawn = [frame for frame in frames if not end.startswith(frame)]
    return Recording(code, end, drawn[len(drawn) // 2] if drawn else end)


def _pieces(terminal: int) -> Iterator[bytes]:
    deadline = time.monotonic() + PATIENCE_S
    with os.fdopen(terminal, "rb", buffering=0) as source, suppress(OSError):  # EIO: all have left
        while time.monotonic() < deadline:
            if select.select([source], [], [], 1.0)[0]:
                if not (piece := source.read(65536)):
                    return
                yield piece
    if time.monotonic() >= deadline:
        raise SystemExit(f"a command was not done after {PATIENCE_S:g} s")


def picture(line: str, screen: str, name: str) -> str:
    """Return a terminal with a command and its output as SVG, which loads nothing."""
    console = Console(
        file=io.StringIO(), record=True, width=COLUMNS, force_terminal=True, highlight=False
    )
    console.print(Text(f"$ {line}", "bold"))
    # A terminal breaks a line at its edge, not at a space.
    for row in Text.from_ansi(screen).split("\n", allow_blank=True):
        for part in row.divide(range(COLUMNS, len(row), COLUMNS)):
            console.print(part)
    svg = console.export_svg(title="pdr-graph", unique_id=f"walk-{name}")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """Perform the steps and write their pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--here", action="store_true", help="install nothing")
    parser.add_argument("--short", action="store_true", help="the steps that a test can afford")
    parser.add_argument("--weights", type=Path, help="folder of weights that were fetched before")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the pictures")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pdr-", dir="/tmp") as made:
        home = Path(made)
        programs = Path(sys.executable).parent if asked.here else _installed(home)
        environment = {
            "HOME": str(home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
            "LANG": "C.UTF-8",
            **{name: os.environ[name] for name in ("PDR_DEMO", "PYTHONPATH") if name in os.environ},
        }
        if asked.weights is not None:
            weights = home / ".local/share/pdr-graph/weights"
            weights.mkdir(parents=True, mode=0o700)
            for file in asked.weights.glob("*.gguf"):
                (weights / file.name).symlink_to(file.absolute())
        for step in SHORT if asked.short else STEPS:
            done = recorded(step.words, environment, home)
            (asked.out / f"{step.name}.svg").write_text(
                picture(step.line, done.screen, step.name), "utf-8"
            )
            if step.moving:
                (asked.out / f"{step.name}-live.svg").write_text(
                    picture(step.line, done.half_way, f"{step.name}-live"), "utf-8"
                )
            sys.stderr.write(f"{step.line}: exit code {done.code}\n")
            if done.code != 0:
                sys.stderr.write(done.screen + "\n")
                return 1
    return 0


def _installed(home: Path) -> Path:
    """Make an environment with the package from this clone; return the folder of its programs."""
    folder = home / "env"
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{ROOT}[local]"], check=True)
    sys.stderr.write(f"pip install '.[local]': {time.monotonic() - began:.0f} s\n")
    return folder / "bin"


if __name__ == "__main__":
    sys.exit(main())
