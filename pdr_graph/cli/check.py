"""`pdr-graph check`: predictions against gold answers, as JSON lines in and out."""

import asyncio
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

from pdr_graph.answers import Checker, CheckResult, Limits, Mode, WorkerPool
from pdr_graph.answers.extract import final_answer
from pdr_graph.answers.reader import read
from pdr_graph.answers.values import UnreadableAnswer, WordAnswer
from pdr_graph.cli.commands import CheckCommand
from pdr_graph.cli.output import Output, joined
from pdr_graph.errors import ConfigError, counted
from pdr_graph.files import json_object

HEARTBEAT_S = 10.0
CHUNK_BYTES = 1 << 16
_AHEAD = 32
"""Lines read ahead for each worker, so that a slow one delays no others; bounds memory."""

Reading = Literal["auto", "answer", "raw"]
"""How a prediction is read: as a `Mode`, or as whichever of them fits (`auto`)."""
READINGS: tuple[str, ...] = get_args(Reading)
LONGEST_BARE = 200
"""Characters of a prediction that may be an answer alone; a longer one is a solution."""


@dataclass(frozen=True, slots=True)
class Case:
    """One line."""

    id: object
    """As given, a text or number; without one, the number of the line."""
    gold: str
    pred: str
    mode: Mode
    """How the prediction is read."""
    truncated: bool
    """Whether a token limit cut the prediction."""


_UnderWay = tuple[Case, asyncio.Task[CheckResult]] | ConfigError
"""A line that is being checked, or what is wrong with it."""


@dataclass(slots=True)
class _Count:
    """The verdicts so far."""

    verdicts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    bad: int = 0
    told: float = field(default_factory=time.monotonic)
    """When the summary was last printed."""

    def take(self, result: CheckResult) -> None:
        """Count a result."""
        self.verdicts[result.verdict.value] += 1
        self.seconds.append(result.seconds)

    def summary(self) -> str:
        """Return the number of each verdict and the median time, in one line."""
        median = statistics.median(self.seconds) * 1000 if self.seconds else 0.0
        return joined(
            [
                f"{len(self.seconds)} checked",
                *(f"{number} {verdict}" for verdict, number in self.verdicts.most_common()),
                f"median {median:.3g} ms" if self.seconds else "",
            ]
        )


def check_command(command: CheckCommand, output: Output) -> None:
    """Check every line, and write the verdicts in the order of the lines.

    Raises:
        ConfigError: the file cannot be read, or some lines are no cases; all others were checked.
    """
    default = _reading(command.mode)
    if default is None:
        raise ConfigError(f"--mode {command.mode!r} is unknown; known are {', '.join(READINGS)}")
    limits = Limits(command.workers, command.deadline)
    name, source = _opened(command.file)
    with source:
        count = asyncio.run(_check_all(source, name, default, limits, output))
    if not (count.bad or count.seconds):
        raise ConfigError(f"{name} holds no lines to check")
    output.say(count.summary())
    if count.bad:
        were = "was" if count.bad == 1 else "were"
        raise ConfigError(f"{counted(count.bad, 'line')} {were} not checked; each is named above")


def _reading(text: object) -> Reading | None:
    return next((each for each in get_args(Reading) if each == text), None)


def _mode_of(pred: str, gold: str, reading: Reading, *, truncated: bool) -> Mode:
    """Choose how a prediction is read.

    A text without a box or an answer line is read as a bare answer only if it is one line that
    reads as a number, a formula or an option, or as words if the gold answer is words. A text that
    was cut has not reached its answer.
    """
    if reading != "auto":
        return reading
    bare = pred.strip()
    if truncated or final_answer(pred) is not None or not 0 < len(bare) <= LONGEST_BARE:
        return "answer"
    value = UnreadableAnswer("several lines") if "\n" in bare else read(bare)
    if isinstance(value, WordAnswer) and not isinstance(read(gold), WordAnswer):
        return "answer"
    return "answer" if isinstance(value, UnreadableAnswer) else "raw"


def parse_case(line: bytes, where: str, number: int, default: Reading) -> Case:
    """Read one line.

    Raises:
        ConfigError: it is no case; the sentence begins with `where`.
    """
    row = json_object(line, where, 'write {"gold": …, "pred": …}')
    identity, truncated = row.get("id"), row.get("truncated")
    asked = row.get("mode")
    reading = default if asked is None else _reading(asked)
    if reading is None:
        raise ConfigError(f"{where}: mode {asked!r} is unknown; known are {', '.join(READINGS)}")
    if not isinstance(identity, str | int | None):
        raise ConfigError(f"{where}: id {identity!r:.60} must be text or a whole number")
    if not isinstance(truncated, bool | None):
        raise ConfigError(f"{where}: truncated is {truncated!r}, it must be true or false")
    gold, pred = _text(row, "gold", where), _text(row, "pred", where)
    return Case(
        id=number if identity is None else identity,
        gold=gold,
        pred=pred,
        mode=_mode_of(pred, gold, reading, truncated=bool(truncated)),
        truncated=bool(truncated),
    )


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """Return a field as text; a number counts as what it looks like."""
    if name not in row:
        fields = ", ".join(map(repr, row)) or "no fields"
        raise ConfigError(f"{where} has no {name!r}; it has {fields}")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ConfigError(f"{where}: {name!r} is {value!r:.60}, it must be text or a number")
    text = str(value)
    if name == "gold" and not text.strip():
        raise ConfigError(f"{where}: 'gold' is empty")
    return text


def _opened(file: Path | None) -> tuple[str, IO[bytes]]:
    if file is not None and str(file) != "-":
        try:
            return str(file), file.open("rb")
        except OSError as error:
            raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from None
    if sys.stdin is None or (file is None and sys.stdin.isatty()):
        raise ConfigError("nothing to check; name a file of JSON lines, or pipe them in")
    return "standard input", sys.stdin.buffer


async def _check_all(
    source: IO[bytes], name: str, default: Reading, limits: Limits, output: Output
) -> _Count:
    """Write the verdict of each line in order; lines behind it are checked meanwhile."""
    checker, count, loop = Checker(WorkerPool(limits)), _Count(), asyncio.get_running_loop()
    ordered: asyncio.Queue[_UnderWay | OSError | None] = asyncio.Queue()
    room = threading.Semaphore(_AHEAD * limits.num_workers)

    def begin(read: Case | ConfigError | OSError | None) -> None:
        if isinstance(read, Case):
            case = read
            task = loop.create_task(
                checker.check(case.gold, case.pred, mode=case.mode, truncated=case.truncated)
            )
            ordered.put_nowait((case, task))
        else:
            ordered.put_nowait(read)

    def read_on() -> None:
        end = None
        try:
            for each in _cases(source, name, default):
                room.acquire()
                loop.call_soon_threadsafe(begin, each)
        except OSError as error:
            end = error
        loop.call_soon_threadsafe(begin, end)

    # A daemon: the command must not wait at its end for a pipe that is silent.
    threading.Thread(target=_until_closed, args=(read_on,), daemon=True).start()
    try:
        while (next_one := await ordered.get()) is not None:
            if isinstance(next_one, OSError):
                raise ConfigError(f"{name} cannot be read further: {next_one.strerror}")
            await _write(next_one, count, output)
            room.release()
    finally:
        checker.close()
    return count


def _until_closed(work: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the event loop is closed
        work()


async def _write(one: _UnderWay, count: _Count, output: Output) -> None:
    if isinstance(one, ConfigError):
        count.bad += 1
        output.tell(f"error: {one}", "red")
        return
    case, task = one
    result = await task
    count.take(result)
    output.show_json_line(_verdict(case, result))
    if time.monotonic() - count.told > HEARTBEAT_S:
        count.told = time.monotonic()
        output.say(count.summary())


def _cases(source: IO[bytes], name: str, default: Reading) -> Iterator[Case | ConfigError]:
    for number, line in enumerate(_lines(source), start=1):
        if line.strip():
            try:
                yield parse_case(line, f"{name} line {number}", number, default)
            except ConfigError as error:
                yield error


def _lines(source: IO[bytes]) -> Iterator[bytes]:
    """Yield lines as soon as they are there, without their ends."""
    # Not buffered: a buffer is locked while it waits, and the interpreter could not end then.
    raw: Any = getattr(source, "raw", source)  # Any: has `read`, whatever it is
    parts: list[bytes] = []
    while chunk := raw.read(CHUNK_BYTES):
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if others:
            yield b"".join(parts)
            yield from others[:-1]
            parts = others[-1:]
    if any(parts):
        yield b"".join(parts)


def _verdict(case: Case, result: CheckResult) -> dict[str, object]:
    return {
        "id": case.id,
        "correct": result.correct,
        "reason": result.verdict.value,
        "extracted": result.extracted,
        "read": case.mode,
        "seconds": round(result.seconds, 6),
    }
