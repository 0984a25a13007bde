"""The command line `pdr-graph`, and what holds for its whole process.

This file imports only modules that Python has loaded already. Ctrl-C shows a traceback until `main`
handles it, and loading `signal`, `typing` or `collections.abc` would take most of that time.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` is made of, compiled in
import codecs
import os
import sys
from io import TextIOWrapper

TYPE_CHECKING = False  # as in `typing`
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main", "run"]

_INTERRUPTED = 130

_IN_ASCII = {
    **dict.fromkeys("─–—−‐━═", "-"),
    **{"…": "...", "·": "-", "×": "x", "→": "->", "≥": ">=", "≤": "<=", "±": "+-"},
    **{"✓": "+", "✗": "x", "“": '"', "”": '"', "‘": "'", "’": "'", "•": "*", "κ": "kappa"},
    **{"│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "█": "#", "╺": "-", "╸": "-"},
}
"""How our own marks are written where the terminal's encoding lacks them."""


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Spell what an encoding lacks: our marks by their like, all else as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (_IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking)
    return "".join(spelled), error.end


def readable_in_any_encoding() -> None:
    """Let standard output and standard error show any text in any encoding."""
    codecs.register_error("pdr_graph.spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="pdr_graph.spelled")


def readable(text: str) -> str:
    """Return a text that standard output can show, spelled where its encoding lacks a mark."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "pdr_graph.spelled").decode(encoding)


def main() -> None:
    """Run the command line of this process."""
    # Nothing has begun yet, and an import turns an interrupt into a traceback, or swallows it.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _leave)
    import gc

    gc.disable()  # what imports make stays: looking for garbage in it takes a tenth of the start
    from pdr_graph.cli.app import main as main_of_app

    main_of_app()


def run(arguments: "Sequence[str]") -> int:
    """Run one command and return its exit code; every error becomes one sentence."""
    from pdr_graph.cli.app import run as run_of_app

    return run_of_app(arguments)


def work_begins() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again, and Python look for garbage: all is imported.

    Imported objects are no garbage at the end either. Python would search them once more there,
    which takes a sixth of the time of `pdr-graph threads`.
    """
    import gc

    if not gc.isenabled():  # as `main` leaves it
        gc.freeze()
        gc.enable()
    if _signal.getsignal(_signal.SIGINT) is _leave:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def _leave(number: int, frame: object) -> None:
    os._exit(_INTERRUPTED)
