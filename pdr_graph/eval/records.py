"""The records of an evaluation: what a run folder holds, and how to read it.

A run folder holds

    run.json        the header: what was asked, written once, never changed
    samples.jsonl   one line for each finished sample, appended
    trace/*.jsonl   every model call in full (`pdr_graph.trace`), one file for each process
    run.lock        locks on the samples that are being worked on; nothing to read

A sample is one attempt of one arm at one problem. Its line is written when it is finished, so a
sample without a line still has to be run. If a sample has two lines (it failed and was run again),
the later one counts. A last line without a newline was cut off when a process died, and is
ignored. Any other damage stops the reader.

This is schema version 1. A reader refuses every other version. A new field means a new version.
"""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NotRequired, TypedDict, get_args

from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import ConfigError
from pdr_graph.files import json_object

SCHEMA = 1
"""Version of both files."""

Reason = Literal["correct", "wrong", "no_answer", "unparseable", "timeout", "truncated", "failed"]
"""The result of checking a solution. Only `correct` is right; only `correct` and `wrong` are
judgements. `no_answer`: the solution states no answer. `truncated`: it states none because its
token limit cut it. `unparseable`, `timeout`: the checker could not decide. `failed`: the run ended
without a solution."""

NO_ANSWER = frozenset({"no_answer", "truncated"})
"""Reasons of a solution that states no answer."""


class DataRecord(TypedDict):
    """The problems of a run."""

    source: str
    """As given on the command line."""
    sha256: str
    """Of the file; if there is no file, of the problems as JSON lines."""
    num_problems: int
    scored_by: str
    """How answers are judged, in a sentence."""


class BudgetRecord(TypedDict):
    """An arm's budget, in completion tokens as allotted; prompts are not counted."""

    max_tokens: int
    """Of each call."""
    sequential_calls: int
    """Most calls on the critical path, the final call included."""
    total_calls: int
    """Most calls in all."""
    b_seq_nominal: int
    b_total_nominal: int
    derived: str
    """What was derived from which budget, in a sentence; empty if nothing was."""


class ArmRecord(TypedDict):
    """One arm."""

    spec: str
    """As given on the command line, sweeps included."""
    preset: str
    """With what was changed of it, as `PDRConfig.strategy` writes it."""
    config: dict[str, Any]  # Any: PDRConfig as plain data
    """Its seed is None: every sample has its own."""
    budget: BudgetRecord


class HeaderRecord(TypedDict):
    """What was asked; `run.json`."""

    schema: int
    run_id: str
    """Random; part of every thread id."""
    created: str
    """ISO 8601, in UTC."""
    data: DataRecord
    arms: dict[str, ArmRecord]
    samples: int
    """Of each arm at each problem."""
    seed: int
    model: str
    """The drafter's."""
    models: NotRequired[dict[str, str]]
    """The model of each role; absent where one model has all of them."""
    prompts_sha256: dict[str, str]
    versions: dict[str, str]
    share_first_round: bool
    """Whether arms share the drafts of their first round, which makes their samples dependent."""
    judge: NotRequired[str]
    """Digest of the judge that weighs drafts; absent where none does."""


class DraftRecord(TypedDict):
    """One draft, judged."""

    round: int
    """1 for the first parallel round."""
    index: int
    """Position in its round, from 0."""
    answer: str | None
    correct: bool
    reason: Reason
    truncated: bool
    loop: NotRequired[bool]
    """Whether it is truncated because it repeated itself; absent in any other draft."""
    error: str | None
    """`failed`, `empty`, `truncated` or `cut`; None if the draft is usable."""
    tokens: NotRequired[int]
    """Completion tokens of its call; absent in records of version 0.1."""
    signals: NotRequired[dict[str, float]]
    """As in `Draft`; absent where no part of the run asks for signals."""
    weight: NotRequired[float]
    """As in `Draft`; absent where no judge has weighed it."""


class WorkspaceRecord(TypedDict):
    """One distilled workspace."""

    round: int
    """The round whose drafts it was distilled from."""
    index: int
    """Position among the workspaces of its round, from 0. Of n workspaces, draft i of the next
    round reads number i modulo n."""
    tokens: int
    holds_correct: bool
    """Whether its text contains a correct answer as a word of its own: the gold answer, or that of
    a correct draft. A number that is there by chance counts too."""
    sources: list[int] | None
    """Indices of the admitted drafts, best first; None if unknown."""


class SampleRecord(TypedDict):
    """One finished attempt of one arm at one problem; a line of `samples.jsonl`."""

    schema: int
    arm: str
    problem_id: str
    sample: int
    """From 0."""
    thread_id: str
    """Names its checkpoints, for `pdr-graph inspect`."""
    dependent: bool
    """Whether it shares first-round drafts with a sample of another arm."""
    answer: str | None
    gold: str
    correct: bool
    reason: Reason
    truncated: bool
    """Whether the token limit cut the solution, or it was ended in a loop."""
    loop: NotRequired[bool]
    """Whether it is truncated because it repeated itself; absent in any other sample."""
    finish: str | None
    """How the run ended: `refine`, `vote`, `select` or a user's own finish; `consensus` if the
    drafts' agreement ended it early. None if it failed."""
    rounds_run: int
    ledger: dict[str, Any]  # Any: plain JSON data
    """`Ledger.to_json`: b_seq, b_total, b_seq_nominal, b_total_nominal, …, rows."""
    seconds: float
    """Of work; while a killed run waits to be resumed, no time is counted."""
    drafts: list[DraftRecord]
    """Of all rounds, in order."""
    workspaces: list[WorkspaceRecord]
    prompts_sha256: dict[str, str]
    data_sha256: str
    versions: dict[str, str]
    seed: int
    """The sample's own."""
    model: str
    error: str | None
    """Why it failed, in a sentence; None if it did not."""
    notes: NotRequired[list[str]]
    """Where the run departed from its plan, and why."""


HEADER, SAMPLES, TRACE, LOCK = "run.json", "samples.jsonl", "trace", "run.lock"
"""Names in a run folder."""
_HEADER_REMEDY = "restore it, or name another --out"
_LINE_REMEDY = "restore it, or remove the line, and the sample is run again"

Key = tuple[str, str, int]
"""Arm, problem id, sample: unique in a run."""


def key_of(sample: SampleRecord) -> Key:
    """Return what identifies a sample in its run."""
    return sample["arm"], sample["problem_id"], sample["sample"]


@dataclass(frozen=True, slots=True)
class EvalRun:
    """A run folder, read."""

    folder: Path
    header: HeaderRecord
    samples: list[SampleRecord]
    """The finished ones, each once, in the order in which they finished."""

    def config(self, arm: str) -> PDRConfig:
        """Return the settings of an arm."""
        return make_config(**self.header["arms"][arm]["config"])


def read_run(folder: Path) -> EvalRun:
    """Read a run folder, finished or not.

    Raises:
        ConfigError: there is no run, it has another schema version, or a file is damaged; the
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
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{str(folder)!r} holds no {HEADER}: `pdr-graph eval … --out "
            f"{shlex.quote(str(folder))}` makes a run"
        ) from None
    header = json_object(data, str(file), _HEADER_REMEDY)
    _check(header, HeaderRecord, str(file), _HEADER_REMEDY)
    return header  # type: ignore[return-value]  # its fields were just checked


def parse_samples(data: bytes, file: Path, first_line: int = 1) -> Iterator[SampleRecord]:
    """Yield the samples of whole lines.

    Args:
        data: Part of a file that begins with a line; a last line without a newline is ignored.
        file: For messages.
        first_line: Number of the first line of `data` in the file.

    Raises:
        ConfigError: a line is not a sample of this schema version.
    """
    for number, line in enumerate(data.split(b"\n")[:-1], start=first_line):
        where = f"{file} line {number}"
        sample = json_object(line, where, _LINE_REMEDY)
        _check(sample, SampleRecord, where, _LINE_REMEDY)
        if sample["reason"] not in get_args(Reason):
            raise ConfigError(f"{where} has unknown reason {sample['reason']!r}; {_LINE_REMEDY}")
        yield sample  # type: ignore[misc]  # its fields were just checked


def _check(value: Mapping[str, Any], kind: type, where: str, remedy: str) -> None:
    if value.get("schema") != SCHEMA:
        raise ConfigError(
            f"{where} has schema version {value.get('schema')!r}, and this pdr-graph reads "
            f"version {SCHEMA}; use the version that wrote it"
        )
    required: frozenset[str] = kind.__required_keys__  # type: ignore[attr-defined]  # a TypedDict
    missing = sorted(required - value.keys())
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; {remedy}")


@dataclass(frozen=True, slots=True)
class ArmTally:
    """What `pdr-graph eval` shows of one arm: counts, and plain means over its samples.

    Means over problems, intervals and comparisons need numpy: see `summary.py`, `comparison.py`.
    """

    arm: str
    samples: int
    correct: int
    accuracy: float
    """Share of correct samples; 0 without samples."""
    no_answer: float
    """Share of samples whose solution states no answer."""
    failed: int
    b_seq: float
    b_total: float
    b_seq_nominal: float
    b_total_nominal: float
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return it as plain data."""
        return {name: value for name, value in asdict(self).items() if name != "arm"}


def tallies(run: EvalRun) -> list[ArmTally]:
    """Return a tally of every arm, in the order of the header."""
    return [
        _tally(arm, [each for each in run.samples if each["arm"] == arm])
        for arm in run.header["arms"]
    ]


def _tally(arm: str, samples: Sequence[SampleRecord]) -> ArmTally:
    def mean(values: Iterable[float]) -> float:
        return fmean(found) if (found := list(values)) else 0.0

    return ArmTally(
        arm=arm,
        samples=len(samples),
        correct=sum(each["correct"] for each in samples),
        accuracy=mean(each["correct"] for each in samples),
        no_answer=mean(each["reason"] in NO_ANSWER for each in samples),
        failed=sum(each["reason"] == "failed" for each in samples),
        b_seq=mean(each["ledger"]["b_seq"] for each in samples),
        b_total=mean(each["ledger"]["b_total"] for each in samples),
        b_seq_nominal=mean(each["ledger"]["b_seq_nominal"] for each in samples),
        b_total_nominal=mean(each["ledger"]["b_total_nominal"] for each in samples),
        seconds=mean(each["seconds"] for each in samples),
    )
