r"""Where problems come from, by how the source is written.

Problems from a file of JSON lines.

A row: `{"id": "gsm8k-test-120", "problem": "Miguel uses 2 pads ...", "answer": "240"}`. Other
fields are ignored. Without an id the number of the line is one.

Problems of a data set on the Hugging Face hub, or in a folder: `hf:org/name[/config]:split`.

Columns are found by name: the problem in `problem`, `question` or `prompt`, the answer in `answer`,
`final_answer`, `target` or `solution`, the id in `id` or `unique_id`. A row of GSM8K:
`{"question": "Natalia sold clips ...", "answer": "Natalia sold 48/2 = 24 ...\n#### 72"}`; of an
answer that explains itself only what it states counts, as `#### 72` or `\boxed{72}`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdr_graph.answers.extract import final_answer
from pdr_graph.errors import ConfigError
from pdr_graph.eval import gym
from pdr_graph.eval.problems import Problem, Problems, checked, hash_of

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


PREFIX = "hf:"
_PROBLEM = ("problem", "question", "prompt")
_ANSWER = ("answer", "final_answer", "target", "solution")
_ID = ("id", "unique_id")


def load_split(source: str) -> Problems:
    """Load one split.

    Raises:
        ConfigError: the library is not installed, there is no such data set or split, or it has
            no column for a problem or its answer.
    """
    place, colon, split = source.removeprefix(PREFIX).rpartition(":")
    if not colon or not place or not split:
        raise ConfigError(f"{source!r} names no split; write hf:org/name:test")
    rows = _rows(place, split, source)
    columns = list(rows.column_names)
    problem, answer = _column(columns, _PROBLEM, source), _column(columns, _ANSWER, source)
    identity = next((name for name in _ID if name in columns), None)
    problems = tuple(
        Problem(
            id=str(index) if identity is None else str(row[identity]),
            text=_stated(row, problem, index, source),
            gold=_gold(_stated(row, answer, index, source)),
            index=index,
        )
        for index, row in enumerate(rows)
    )
    return Problems(
        source=source,
        problems=checked(problems, source),
        sha256=hash_of(problems),
        scored_by=SCORED_BY,
        packages=("datasets",),
    )


def _rows(place: str, split: str, source: str) -> Any:  # Any: a datasets.Dataset
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            "data sets of the hub need datasets: pip install 'pdr-graph[hf]'"
        ) from None
    # Three parts name a configuration: openai/gsm8k/main.
    parts = [place] if Path(place).exists() else place.split("/")
    name = "/".join(parts[:2])
    config = parts[2] if len(parts) > 2 else None
    try:
        return datasets.load_dataset(name, config, split=split)
    # The library raises errors of a dozen kinds, its network's among them.
    except Exception as error:  # noqa: BLE001
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"{source!r} cannot be loaded: {type(error).__name__}: {why}") from None


def _column(columns: list[str], known: tuple[str, ...], source: str) -> str:
    for name in known:
        if name in columns:
            return name
    raise ConfigError(
        f"{source!r} has none of the columns {', '.join(known)}; it has {', '.join(columns)}. "
        'Write it as JSON lines {"problem": …, "answer": …} instead'
    )


def _stated(row: Mapping[str, Any], column: str, index: int, source: str) -> str:
    text = str(row[column]).strip() if row[column] is not None else ""
    if not text:
        raise ConfigError(f"{source!r} row {index}: {column!r} is empty")
    return text


def _gold(text: str) -> str:
    """Return the answer that a text explains, or the text where it is the answer."""
    return final_answer(text) or text


def load_problems(source: str) -> Problems:
    """Load problems: a file of JSON lines, `hf:org/name:split`, or `reasoning-gym:task?knobs`.

    Raises:
        ConfigError: the source cannot be read, or what it needs is not installed.
    """
    if source.startswith(gym.PREFIX):
        return gym.make_problems(source)
    if source.startswith(PREFIX):
        return load_split(source)
    return read_json_lines(Path(source))
