r"""The problems of an evaluation, and where they come from.

A source is written in one of three ways.

- The path of a file of JSON lines. A row:
  `{"id": "gsm8k-test-120", "problem": "Miguel uses 2 pads ...", "answer": "240"}`. Other fields are
  ignored. A row without an id gets its line number.
- `hf:org/name[/config]:split`, a data set on the Hugging Face hub or in a folder. Its columns are
  found by name (`PROBLEM_COLUMNS` and so on). A row of GSM8K:
  `{"question": "Natalia sold clips ...", "answer": "Natalia sold 48/2 = 24 ...\n#### 72"}`. Of an
  answer with an explanation, only the stated result counts, as in `#### 72` or `\boxed{72}`.
- `reasoning-gym:chain_sum?size=200&seed=7&min_terms=3`, problems that a program makes. After the
  question mark: any setting of the task, read as JSON or else as text. The same source gives the
  same problems. https://github.com/open-thought/reasoning-gym
"""

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from pdr_graph.answers import CheckVerdict, Limits, VoteBudget, WorkerPool, exact
from pdr_graph.answers.extract import final_answer
from pdr_graph.errors import ConfigError, install_command
from pdr_graph.files import json_object

HUB, GYM = "hf:", "reasoning-gym:"
"""How the sources that are no file begin."""
PROBLEM_COLUMNS = ("problem", "question", "prompt")
ANSWER_COLUMNS = ("answer", "final_answer", "target", "solution")
ID_COLUMNS = ("id", "unique_id")
ANY_ACCEPTED = "(any that the task's scorer accepts)"
"""Stands for the gold answer of a reasoning-gym task that has many right answers."""
_GYM_SIZE = 100
"""Problems of a task, if the source does not say."""
_GYM_WORKER = Path(__file__).with_name("gym_worker.py")
_BY_GOLD = "answers are checked against the gold answer (pdr_graph.answers)"


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem."""

    id: str
    text: str
    gold: str
    """The right answer."""
    index: int = 0
    """Position in its source, from 0."""


Score = Callable[[Problem, str], Awaitable[CheckVerdict]]
"""Judges an extracted answer by the rule of the problem's source."""


@dataclass(frozen=True, slots=True)
class Problems:
    """All problems of one evaluation."""

    source: str
    """As given on the command line."""
    problems: tuple[Problem, ...]
    sha256: str
    """Of the file; if there is no file, of the problems as JSON lines."""
    scored_by: str
    """How answers are judged, in a sentence for the record."""
    score: Score | None = None
    """None: the checker of the arm's answer kind judges."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions decide what the problems are."""

    def first(self, limit: int | None) -> "Problems":
        """Return the first `limit` problems with a hash of their own; None returns all."""
        if limit is None or limit >= len(self.problems):
            return self
        kept = self.problems[:limit]
        return replace(self, problems=kept, sha256=_hash(kept))


def load_problems(source: str) -> Problems:
    """Load the problems of a source.

    Raises:
        ConfigError: the source cannot be read, holds no problems, uses an id twice, or needs a
            package that is not installed.
    """
    if source.startswith(GYM):
        return _from_gym(source)
    if source.startswith(HUB):
        problems = _checked(_from_hub(source), source)
        return Problems(source, problems, _hash(problems), _BY_GOLD, packages=("datasets",))
    return _from_file(Path(source))


def _hash(problems: Sequence[Problem]) -> str:
    digest = hashlib.sha256()
    for each in problems:
        line = json.dumps([each.id, each.text, each.gold], ensure_ascii=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _checked(problems: Sequence[Problem], source: str) -> tuple[Problem, ...]:
    """Return the problems if there are any and their ids differ."""
    if not problems:
        raise ConfigError(f"{source!r} holds no problems")
    [(most, count)] = Counter(each.id for each in problems).most_common(1)
    if count > 1:
        raise ConfigError(
            f"{source!r} has two problems with id {most!r}; give every problem its own id"
        )
    return tuple(problems)


# ---------------------------------------------------------------------------------- JSON lines


def _from_file(file: Path) -> Problems:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"data file {str(file)!r} cannot be read: {error.strerror}") from None
    problems = [
        _from_line(line, number, f"{file} line {number}")
        for number, line in enumerate(data.split(b"\n"), start=1)
        if line.strip()
    ]
    return Problems(
        str(file), _checked(problems, str(file)), hashlib.sha256(data).hexdigest(), _BY_GOLD
    )


def _from_line(line: bytes, number: int, where: str) -> Problem:
    row = json_object(line, where, 'write {"problem": …, "answer": …}')
    return Problem(
        id=_field(row, "id", where) if row.get("id") is not None else str(number),
        text=_field(row, "problem", where),
        gold=_field(row, "answer", where),
        index=number - 1,
    )


def _field(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field as text; a number becomes the text that it is written as."""
    if name not in row:
        raise ConfigError(f"{where} has no {name!r}; it has {', '.join(row) or 'no fields'}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{where}: {name!r} is {value!r}, it must be text or a number")
    text = str(value).strip()
    if not text:
        raise ConfigError(f"{where}: {name!r} is empty")
    return text


# --------------------------------------------------------------------------- Hugging Face hub


def _from_hub(source: str) -> list[Problem]:
    rows = _load_split(source)
    columns = list(rows.column_names)
    problem = _column(columns, PROBLEM_COLUMNS, source)
    answer = _column(columns, ANSWER_COLUMNS, source)
    identity = next((name for name in ID_COLUMNS if name in columns), None)

    def text(row: Mapping[str, Any], column: str, index: int) -> str:
        found = str(row[column]).strip() if row[column] is not None else ""
        if not found:
            raise ConfigError(f"{source!r} row {index}: {column!r} is empty")
        return found

    return [
        Problem(
            id=str(index) if identity is None else str(row[identity]),
            text=text(row, problem, index),
            gold=final_answer(text(row, answer, index)) or text(row, answer, index),
            index=index,
        )
        for index, row in enumerate(rows)
    ]


def _load_split(source: str) -> Any:  # Any: a datasets.Dataset
    place, _, split = source.removeprefix(HUB).rpartition(":")
    if not place or not split:
        raise ConfigError(f"{source!r} names no split; write hf:org/name:test")
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"data sets of the hub need datasets: {install_command('hf')}") from None
    # Three parts name a configuration: openai/gsm8k/main.
    parts = [place] if Path(place).exists() else place.split("/")
    config = parts[2] if len(parts) > 2 else None
    try:
        return datasets.load_dataset("/".join(parts[:2]), config, split=split)
    # The library raises a dozen kinds of errors, those of the network among them.
    except Exception as error:  # noqa: BLE001
        why = " ".join(str(error).split())[:300]
        raise ConfigError(f"{source!r} cannot be loaded: {type(error).__name__}: {why}") from None


def _column(columns: Sequence[str], known: Sequence[str], source: str) -> str:
    for name in known:
        if name in columns:
            return name
    raise ConfigError(
        f"{source!r} has none of the columns {', '.join(known)}; it has {', '.join(columns)}. "
        'Write it as JSON lines {"problem": …, "answer": …} instead'
    )


# ------------------------------------------------------------------------------ reasoning-gym


class GymScorer:
    """Judges answers by the scorer of a reasoning-gym task.

    An answer is right if the scorer gives it 1.0 or more, or if it equals the task's answer as a
    number or as text. Scorers also give part of a point to a reply that only contains the answer;
    that does not count. Some scorers evaluate their input as an expression, so they run in worker
    processes that can be killed (`gym_worker.py`).
    """

    def __init__(self, task: str, knobs: dict[str, Any]) -> None:
        self._task, self._knobs = task, knobs
        # reasoning-gym reserves more address space than the checker allows by default.
        self._pool = WorkerPool(Limits(memory_bytes=4 << 30), _GYM_WORKER)
        self._known: dict[tuple[int, str], CheckVerdict] = {}

    def __reduce__(self) -> tuple[object, ...]:
        """Unpickle as a new scorer with its own workers."""
        return GymScorer, (self._task, self._knobs)

    async def __call__(self, problem: Problem, answer: str) -> CheckVerdict:
        """Return the verdict on an extracted answer."""
        if problem.gold != ANY_ACCEPTED and exact.equal(problem.gold, answer):
            return CheckVerdict.CORRECT
        key = problem.index, answer
        if key not in self._known:
            request = {"task": self._task, "knobs": self._knobs, "index": key[0], "answer": answer}
            vote = VoteBudget.current() or VoteBudget(key=problem.id)
            reply = await self._pool.ask(request, vote)
            self._known[key] = CheckVerdict(reply["verdict"] if reply else "timeout")
        return self._known[key]


def _from_gym(source: str) -> Problems:
    task, _, query = source.removeprefix(GYM).partition("?")
    knobs = {"size": _GYM_SIZE, "seed": 0, **_knobs(query, source)}
    problems = [
        Problem(
            id=f"{task}-{index}",
            text=str(entry["question"]),
            gold=ANY_ACCEPTED if entry["answer"] is None else str(entry["answer"]),
            index=index,
        )
        for index, entry in enumerate(_entries(task, knobs))
    ]
    return Problems(
        source,
        _checked(problems, source),
        _hash(problems),
        scored_by=f"an answer counts if reasoning-gym's scorer of {task} gives 1.0 or more, or if "
        "it equals the task's answer",
        score=GymScorer(task, knobs),
        packages=("reasoning-gym",),
    )


def _knobs(query: str, source: str) -> dict[str, Any]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ConfigError(f"{source!r} is malformed: {error}; write task?size=100&seed=0") from None
    knobs: dict[str, Any] = {}
    for name, text in pairs:
        try:
            knobs[name] = json.loads(text)
        except ValueError:
            knobs[name] = text
    for name, least in (("size", 1), ("seed", 0)):
        value = knobs.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"{source!r}: {name} is {value!r}, it must be a whole number of {least} or more"
            )
    return knobs


def _entries(task: str, knobs: dict[str, Any]) -> list[dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies compile with syntax warnings
        try:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS
        except ImportError:
            raise ConfigError(
                f"procedural problems need reasoning-gym: {install_command('eval')}"
            ) from None
        if task not in DATASETS:
            near = get_close_matches(task, DATASETS, n=5, cutoff=0.3) or sorted(DATASETS)
            raise ConfigError(
                f"reasoning-gym has no task {task!r} among its {len(DATASETS)}; perhaps one of "
                f"{', '.join(near)}"
            )
        try:
            return [dict(entry) for entry in reasoning_gym.create_dataset(task, **knobs)]
        # A task may raise anything, even an AssertionError, on a setting that it does not like.
        except Exception as error:  # noqa: BLE001
            shown = ", ".join(f"{name}={value!r}" for name, value in knobs.items())
            raise ConfigError(f"reasoning-gym refuses {task} with {shown}: {error}") from None
