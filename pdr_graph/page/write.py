"""Writes a page where the user wants it."""

from pathlib import Path

from pdr_graph.errors import ConfigError


def write_page(file: Path, text: str) -> None:
    """Write a page, its folder made if need be.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(
            f"{str(file)!r} cannot be written ({error.strerror}); name another file"
        ) from None
