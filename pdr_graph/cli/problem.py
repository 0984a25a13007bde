"""Where the problem comes from: the argument, a file, or standard input."""

import sys
from pathlib import Path

from pdr_graph.errors import ConfigError


def read_problem(argument: str | None, file: Path | None) -> str:
    """Return the problem's text.

    Raises:
        ConfigError: there is none, there are two, or it cannot be read.
    """
    if argument is not None and file is not None:
        raise ConfigError("the problem is given twice, as an argument and by --file; drop one")
    if argument is not None and argument != "-":
        # Bytes of the command line that are no UTF-8 arrive as lone surrogates.
        return _stated(argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
    if file is not None:
        return _stated(_decoded(_bytes_of(file), f"--file {str(file)!r}"))
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise ConfigError("no problem is given; pass it as an argument, by --file or by a pipe")
    return _stated(_decoded(sys.stdin.buffer.read(), "standard input"))


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"--file {str(file)!r} cannot be read: {error.strerror}") from None


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source} is not UTF-8 text (byte {error.start}); convert it, as with iconv"
        ) from None


def _stated(problem: str) -> str:
    if not problem.strip():
        raise ConfigError("the problem is empty; state the task to be solved")
    return problem
