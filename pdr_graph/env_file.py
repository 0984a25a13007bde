"""The file `.env` of a folder, and whether the user trusts it.

Whoever wrote the folder wrote the file too. It is trusted as direnv does it: the user says so
once, for the file as it is now. A changed file must be trusted again. What is trusted is noted in
the user's own data directory, which no file of settings can move.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from platformdirs import user_data_path

from pdr_graph.errors import ConfigError

ENV_FILE = Path(".env")

_REFERENCE = re.compile(r"\$\{")
"""Begins a reference to a variable of the environment in a value."""


@dataclass(frozen=True, slots=True)
class EnvFile:
    """One file of NAME=value lines, as it was read."""

    path: Path
    """Absolute, without symbolic links."""
    content: str

    @classmethod
    def read(cls, path: Path) -> "EnvFile | None":
        """Read a file; None if there is none.

        Raises:
            ConfigError: it cannot be read, or a line is no NAME=value.
        """
        if not path.is_file():
            return None
        where = path.resolve()
        try:
            content = where.read_text("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{str(where)!r} is not UTF-8 text; correct or remove it") from None
        except OSError as error:
            raise ConfigError(f"{str(where)!r} cannot be read: {error.strerror}") from None
        # dotenv would skip the lines that it does not understand.
        broken = [each.original for each in parse_stream(StringIO(content)) if each.error]
        if broken:
            line, text = broken[0].line, broken[0].string.strip().partition("\n")[0]
            # A broken line may still hold a secret: say where it is and how it begins, no more.
            raise ConfigError(
                f"{str(where)!r} line {line} is no NAME=value: {text[:12]!r}; correct it"
            )
        return cls(where, content)

    def variables(self, *, refer: bool) -> dict[str, str]:
        """Return what the file sets, names in upper case.

        Args:
            refer: Whether `${NAME}` in a value stands for a variable of the environment, which may
                be a secret. If not, it stands for itself.
        """
        found = dotenv_values(stream=StringIO(self.content), interpolate=refer)
        return {name.upper(): value for name, value in found.items() if value}

    @property
    def trust(self) -> Literal["given", "none", "changed"]:
        """Whether the user trusts the file; `changed` if its content is another by now."""
        try:
            noted = self._note.read_text("ascii")
        except (OSError, ValueError):
            return "none"
        return "given" if noted == self._digest else "changed"

    def give_trust(self) -> None:
        """Trust the file, as long as it does not change.

        Raises:
            ConfigError: the user's data directory cannot be written.
        """
        note = self._note
        partial = note.with_name(f"{note.name}.{os.getpid()}.part")
        try:
            for folder in (note.parent.parent, note.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
                out.write(self._digest)
            partial.replace(note)
        except OSError as error:
            raise ConfigError(
                f"{str(note.parent)!r} cannot be written: {error.strerror}; name the file by "
                "--env-file instead"
            ) from None

    def take_trust(self) -> None:
        """Do not trust the file any more."""
        self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        folder = user_data_path("pdr-graph", appauthor=False) / "trusted"
        return folder / hashlib.sha256(os.fsencode(self.path)).hexdigest()

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()


def refers(value: str) -> bool:
    """Tell whether a value refers to a variable of the environment."""
    return _REFERENCE.search(value) is not None
