"""Files of JSON lines: several processes append to them and may die, others read them."""

import fcntl
import json
import mmap
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
