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

The fields of a run folder's records; `records.py` says where they are and reads them.

A run's plain figures, in pure Python: what `pdr-graph eval` ends with.

Intervals and comparisons are another matter: see `summary.py` and `comparison.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NotRequired, TypedDict, get_args

from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import ConfigError

SCHEMA = 1
"""Version of both files."""

Reason = Literal["correct", "wrong", "no_answer", "unparseable", "timeout", "truncated", "failed"]
"""What came of checking an answer: only the first is right, only the first two are judged.
`no_answer`: the solution states none. `truncated`: the same, of a solution that its token limit
cut. `unparseable`, `timeout`: the checker could not decide. `failed`: there is no solution."""


class DataRecord(TypedDict):
    """Which problems."""

    source: str
    """As given on the command line."""
    sha256: str
    """Of the file; of the problems, a line each, where there is no file."""
    num_problems: int
    scored_by: str
    """A sentence on how an answer is judged."""


class BudgetRecord(TypedDict):
    """How an arm's budget came about, in model tokens as allotted: prompts are not counted."""

    max_tokens: int
    """Allotted to each call."""
    sequential_calls: int
    """On the critical path, the final call included; the most that the arm can make."""
    total_calls: int
    """The most that the arm can make in all."""
    b_seq_nominal: int
    b_total_nominal: int
    derived: str
    """A sentence on what was derived to match which budget; empty where nothing was."""


class ArmRecord(TypedDict):
    """One arm."""

    spec: str
    """As given on the command line, sweeps included."""
    preset: str
    config: dict[str, Any]  # Any: PDRConfig as plain data
    """Its seed is None: every sample has its own."""
    budget: BudgetRecord


class HeaderRecord(TypedDict):
    """What was asked; `run.json`."""

    schema: int
    run_id: str
    """Drawn once; part of every thread id."""
    created: str
    """ISO 8601, in UTC."""
    data: DataRecord
    arms: dict[str, ArmRecord]
    samples: int
    """Attempts of each arm at each problem."""
    seed: int
    model: str
    prompts_sha256: dict[str, str]
    versions: dict[str, str]
    share_first_round: bool
    """Whether arms share the drafts of their first round; their samples are then dependent."""


class DraftRecord(TypedDict):
    """One draft and whether it was right."""

    round: int
    """1 for the first parallel round."""
    index: int
    """Position in its round, from 0."""
    answer: str | None
    correct: bool
    reason: Reason
    truncated: bool
    error: str | None
    """`failed`, `empty`, `truncated` or `cut`; None for a usable draft."""


class WorkspaceRecord(TypedDict):
    """One distilled workspace."""

    round: int
    """The round that it was distilled from."""
    index: int
    """Position among the workspaces of its round, from 0; draft i of the next round reads number
    i modulo their count."""
    tokens: int
    holds_correct: bool
    """Whether a correct answer stands in its text: the gold answer, or the answer of a correct
    draft, as a word of its own. A number that is there by chance counts."""
    sources: list[int] | None
    """Indices of the drafts admitted, best first; None if unknown."""


class SampleRecord(TypedDict):
    """One finished attempt of one arm at one problem; a line of `samples.jsonl`."""

    schema: int
    arm: str
    problem_id: str
    sample: int
    """From 0."""
    thread_id: str
    """Its checkpoints, for `pdr-graph inspect`."""
    dependent: bool
    """Whether it shares first-round drafts with another arm."""
    answer: str | None
    gold: str
    correct: bool
    reason: Reason
    truncated: bool
    """Whether the token limit cut the solution."""
    finish: str | None
    """How the run ended: `refine`, `vote`, `select` or a user's own; `consensus` where the drafts'
    agreement ended it early. None where it failed."""
    rounds_run: int
    ledger: dict[str, Any]  # Any: plain JSON data
    """`Ledger.to_json`: b_seq, b_total, b_seq_nominal, b_total_nominal, …, rows."""
    seconds: float
    """Of work; the time that a killed run lay still is left out."""
    drafts: list[DraftRecord]
    """All rounds, in order."""
    workspaces: list[WorkspaceRecord]
    prompts_sha256: dict[str, str]
    data_sha256: str
    versions: dict[str, str]
    seed: int
    """The sample's own."""
    model: str
    error: str | None
    """A sentence on why it failed."""
    notes: NotRequired[list[str]]
    """What the run did otherwise than planned, and why."""


HEADER, SAMPLES = "run.json", "samples.jsonl"

Key = tuple[str, str, int]
"""Arm, problem id, sample."""


def key_of(sample: SampleRecord) -> Key:
    """Return what tells a sample from all others of its run."""
    return sample["arm"], sample["problem_id"], sample["sample"]


@dataclass(frozen=True, slots=True)
class EvalRun:
    """A run folder, read."""

    folder: Path
    header: HeaderRecord
    samples: list[SampleRecord]
    """One for each finished sample, in the order in which they finished."""

    def config(self, arm: str) -> PDRConfig:
        """Return the settings of an arm."""
        return make_config(**self.header["arms"][arm]["config"])


def read_run(folder: Path) -> EvalRun:
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
    return EvalRun(folder, header, list(latest.values()))


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


_NO_ANSWER = frozenset({"no_answer", "truncated"})


@dataclass(frozen=True, slots=True)
class ArmTally:
    """One arm: counts, and means over its samples."""

    arm: str
    samples: int
    correct: int
    accuracy: float
    """Share of right answers; 0 without samples."""
    no_answer: float
    """Share of solutions that state no answer, cut ones included."""
    failed: int
    b_seq: float
    b_total: float
    b_seq_nominal: float
    b_total_nominal: float
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return {name: value for name, value in asdict(self).items() if name != "arm"}


def tallies(run: EvalRun) -> list[ArmTally]:
    """Return the figures of every arm, in the order of the header."""
    return [
        _tally(arm, [each for each in run.samples if each["arm"] == arm])
        for arm in run.header["arms"]
    ]


def _tally(arm: str, samples: Sequence[SampleRecord]) -> ArmTally:
    def mean(values: Sequence[float]) -> float:
        return fmean(values) if values else 0.0

    def spent(name: str) -> float:
        return mean([float(each["ledger"][name]) for each in samples])

    return ArmTally(
        arm=arm,
        samples=len(samples),
        correct=sum(each["correct"] for each in samples),
        accuracy=mean([float(each["correct"]) for each in samples]),
        no_answer=mean([float(each["reason"] in _NO_ANSWER) for each in samples]),
        failed=sum(each["reason"] == "failed" for each in samples),
        b_seq=spent("b_seq"),
        b_total=spent("b_total"),
        b_seq_nominal=spent("b_seq_nominal"),
        b_total_nominal=spent("b_total_nominal"),
        seconds=mean([each["seconds"] for each in samples]),
    )
