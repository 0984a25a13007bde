"""Files that several processes read and write, and that a crash leaves whole.

`append_lines` adds whole lines, `written_whole` replaces a whole file; `json_object` reads a line.
"""

import fcntl
import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pdr_graph.errors import ConfigError


def append_lines(file: Path, lines: bytes) -> None:
    """Append whole lines to a file, under a lock on it, and wait until they are on the disk.

    If a writer died in the middle of a line, that partial line is removed first.

    Args:
        file: Created if it does not exist.
        lines: Each ends with a newline.

    Raises:
        OSError: the file cannot be written.
    """
    with file.open("a+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        if size := opened.seek(0, os.SEEK_END):
            with mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_READ) as written:
                whole = written.rfind(b"\n") + 1
            if whole < size:
                opened.truncate(whole)
        opened.write(lines)
        opened.flush()
        os.fsync(opened.fileno())


@contextmanager
def written_whole(file: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
    """Write a file whole, or leave it as it is.

    The block writes to a temporary file beside it, which replaces it at the end of the block. If
    the block raises, the file does not change.

    Args:
        file: In a folder that exists.
        private: Only the user may read it, from its first byte on.

    Raises:
        OSError: the file cannot be written.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    mode = 0o600 if private else 0o666
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def json_object(line: bytes, where: str, remedy: str) -> dict[str, Any]:
    """Parse one line.

    Args:
        line: With or without its newline; a byte order mark is ignored.
        where: File and number of the line, for messages.
        remedy: How to repair it, for messages.

    Raises:
        ConfigError: the line is not a JSON object in UTF-8.
    """
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not a JSON object; {remedy}")
    return value
