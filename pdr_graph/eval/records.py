"""What an evaluation leaves behind, and how it is read back.

A run folder holds

    run.json        the header: what was asked, written once, never changed
    samples.jsonl   one line for each finished sample, appended to
    trace/*.jsonl   every model call in full (`pdr_graph.trace`), one file for each process
    run.lock        which samples are being worked on; holds nothing to read

A sample is one attempt of one arm at one problem. Its line is written once it is finished, so a
sample without a line is owed. Where a sample has two lines (it had failed, and was asked for
again) the later one holds. A last line without its end was being written when a process died: it
counts as absent. Any other damage stops the reader.

Schema version 1. A reader refuses another version; a field is only ever added with a new one.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import ConfigError
from pdr_graph.eval.schema import (
    SCHEMA,
    ArmRecord,
    BudgetRecord,
    DataRecord,
    DraftRecord,
    HeaderRecord,
    Reason,
    SampleRecord,
    WorkspaceRecord,
)

__all__ = [
    "HEADER",
    "SAMPLES",
    "SCHEMA",
    "ArmRecord",
    "BudgetRecord",
    "DataRecord",
    "DraftRecord",
    "HeaderRecord",
    "Key",
    "Reason",
    "Run",
    "SampleRecord",
    "WorkspaceRecord",
    "key_of",
    "parse_samples",
    "read_header",
    "read_run",
]

HEADER, SAMPLES = "run.json", "samples.jsonl"

Key = tuple[str, str, int]
"""Arm, problem id, sample."""


def key_of(sample: SampleRecord) -> Key:
    """Return what tells a sample from all others of its run."""
    return sample["arm"], sample["problem_id"], sample["sample"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, read."""

    folder: Path
    header: HeaderRecord
    samples: list[SampleRecord]
    """One for each finished sample, in the order in which they finished."""

    def config(self, arm: str) -> PDRConfig:
        """Return the settings of an arm."""
        return make_config(**self.header["arms"][arm]["config"])


def read_run(folder: Path) -> Run:
    """Read a run folder, finished or not.

    Raises:
        ConfigError: there is no run, it is of another schema version, or a file is damaged; the
            sentence names file and line.
    """
    header = read_header(folder)
    file = folder / SAMPLES
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        data = b""
    latest: dict[Key, SampleRecord] = {}
    for sample in parse_samples(data, file):
        latest.pop(key_of(sample), None)
        latest[key_of(sample)] = sample
    return Run(folder, header, list(latest.values()))


def read_header(folder: Path) -> HeaderRecord:
    """Read what a run was asked to do.

    Raises:
        ConfigError: as for `read_run`.
    """
    file = folder / HEADER
    try:
        text = file.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{str(folder)!r} holds no {HEADER}: `pdr-graph eval … --out {folder}` makes a run"
        ) from None
    header = _object(text, str(file), remedy="restore it, or name another --out")
    _check(header, HeaderRecord, str(file))
    return header  # type: ignore[return-value]  # its fields were just checked


def parse_samples(data: bytes, file: Path, first_line: int = 1) -> Iterator[SampleRecord]:
    """Yield the samples of whole lines.

    Args:
        data: Part of a file, from the beginning of a line on; a last line without its end is left.
        file: For messages.
        first_line: Number of the first line of `data` in the file.

    Raises:
        ConfigError: a line is not a sample of this schema version.
    """
    for number, line in enumerate(data.split(b"\n")[:-1], start=first_line):
        where = f"{file} line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{where} is not UTF-8 text; {_REPAIR}") from None
        sample = _object(text, where)
        _check(sample, SampleRecord, where)
        if sample["reason"] not in get_args(Reason):
            raise ConfigError(f"{where}: reason {sample['reason']!r} is none; {_REPAIR}")
        yield sample  # type: ignore[misc]  # its fields were just checked


_REPAIR = "restore it, or remove the line, and the sample is owed again"


def _object(text: str, where: str, remedy: str = _REPAIR) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where} is damaged ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is no JSON object; {remedy}")
    return value


def _check(value: Mapping[str, Any], kind: type, where: str) -> None:
    if value.get("schema") != SCHEMA:
        raise ConfigError(
            f"{where} is of schema version {value.get('schema')!r}, and this pdr-graph reads "
            f"version {SCHEMA}; use the version that wrote it"
        )
    required: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]  # a TypedDict
    missing = sorted(required - value.keys())
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; {_REPAIR}")
