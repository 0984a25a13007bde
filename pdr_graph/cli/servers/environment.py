"""The variables that point other commands at the servers, and a file that keeps them."""

import os
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from pdr_graph.errors import ConfigError

MODEL_VARIABLE, STORE_VARIABLE = "PDR_BASE_URL", "PDR_REDIS_URL"


def check_env_file(file: Path) -> None:
    """Refuse a file before anything is started.

    Raises:
        ConfigError: it cannot be read and written, or is not one of NAME=value lines.
    """
    try:
        text = file.read_text("utf-8") if file.exists() else ""
        with file.open("a"):
            pass
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--env-file {str(file)!r} cannot be written: {why}") from None
    if any(each.error for each in parse_stream(StringIO(text))):
        raise ConfigError(f"--env-file {str(file)!r} holds lines that are no NAME=value")


def write_env_file(file: Path, variables: Mapping[str, str]) -> None:
    """Set variables in a file, whole or not at all; its other lines stay as they are."""
    text = file.read_text("utf-8") if file.exists() else ""
    kept = [
        each.original.string for each in parse_stream(StringIO(text)) if each.key not in variables
    ]
    body = "".join(kept)
    if body and not body.endswith("\n"):
        body += "\n"
    body += "".join(f"{name}={value}\n" for name, value in variables.items())
    partial = file.with_name(f"{file.name}.{os.getpid()}.part")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(body)
    partial.replace(file)
