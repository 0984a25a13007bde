"""Files of JSON lines: several processes append to them and may die, others read them."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

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
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    opened = os.open(file, flags, 0o666)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        _remove_partial_line(opened)
        while lines:
            lines = lines[os.write(opened, lines) :]
        os.fsync(opened)
    finally:
        os.close(opened)


def _remove_partial_line(file: int) -> None:
    end = os.fstat(file).st_size
    if not end or os.pread(file, 1, end - 1) == b"\n":
        return
    while end:
        start = max(0, end - 65_536)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(file, start + newline + 1)
            return
        end = start
    os.ftruncate(file, 0)


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
