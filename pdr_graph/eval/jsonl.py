r"""Problems from a file of JSON lines.

A row: `{"id": "gsm8k-test-120", "problem": "Miguel uses 2 pads ...", "answer": "240"}`. Other
fields are ignored. Without an id the number of the line is one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem, Problems, checked

SCORED_BY = "answers are checked against the gold answer (pdr_graph.answers)"


def read_json_lines(file: Path) -> Problems:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, or a line is no problem; the sentence names the line.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"data file {str(file)!r} cannot be read: {error.strerror}") from None
    problems = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            problems.append(_problem(line, number, f"{file} line {number}"))
    return Problems(
        source=str(file),
        problems=checked(problems, str(file)),
        sha256=hashlib.sha256(data).hexdigest(),
        scored_by=SCORED_BY,
    )


def _problem(line: bytes, number: int, where: str) -> Problem:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text; convert it, as with iconv") from None
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ConfigError(f'{where} is no JSON object; write {{"problem": …, "answer": …}}')
    return Problem(
        id=_text(row, "id", where) if row.get("id") is not None else str(number),
        text=_text(row, "problem", where),
        gold=_text(row, "answer", where),
        index=number - 1,
    )


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """Return a field as text; a number counts as what it looks like."""
    if name not in row:
        raise ConfigError(f"{where} has no {name!r}; it has {', '.join(row) or 'no fields'}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{where}: {name!r} is {value!r}, it must be text or a number")
    text = str(value).strip()
    if not text:
        raise ConfigError(f"{where}: {name!r} is empty")
    return text
