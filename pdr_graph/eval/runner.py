"""Runs the samples that a run still owes: side by side, each in a thread, each recorded once.

A process that is killed or stopped loses nothing: the next one skips samples that have a line, and
resumes threads that were begun from their last finished draft. Several processes may work on one
run: each claims a sample before it looks whether the sample is still owed.

They share the run folder. A sample's line is appended whole (`files.py`). A claim on a sample
is a lock on one byte of a file; the system releases it when the process that holds it ends, however
it ends. Both need a file system whose locks hold between the processes; on one machine, any file
system does.
"""

import asyncio
import fcntl
import json
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

from langgraph.runtime import RunControl

from pdr_graph.errors import ConfigError, DrainedError, EndpointError, PDRError
from pdr_graph.eval.records import (
    HEADER,
    LOCK,
    SAMPLES,
    TRACE,
    HeaderRecord,
    Key,
    SampleRecord,
    key_of,
    parse_samples,
    read_header,
)
from pdr_graph.eval.sample import Sample
from pdr_graph.events import OnEvent, RunEvent
from pdr_graph.files import append_lines

MOST_FAILURES = 10
"""If so many samples fail in a row, the endpoint is to blame and not the arms: the run stops, and
none of them is recorded."""
_POLL_S = 0.5
"""Seconds between two looks at samples that another process works on."""

Claim = Callable[[str], AbstractAsyncContextManager[bool]]
"""Claims a thread against processes of other machines; yields False if one of them has it."""


class RunFolder:
    """A run folder as seen by a process that writes to it: header, finished samples, claims."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / SAMPLES
        """The file of finished samples."""
        self.finished: dict[Key, SampleRecord] = {}
        """By arm, problem and sample. If a sample has two lines, the later one."""
        self._offset = 0
        self._lines = 0
        self._claims: BinaryIO | None = None

    def open(self, header: HeaderRecord) -> HeaderRecord:
        """Create the folder, or find the run in it; returns the header of the folder.

        If several processes begin at the same time, one of them writes the header.

        Raises:
            ConfigError: the folder cannot be created, or its header is damaged.
        """
        try:
            (self.path / TRACE).mkdir(parents=True, exist_ok=True)
            self._write_header(header)
        except OSError as error:
            raise ConfigError(
                f"--out {str(self.path)!r} cannot be made: {error.strerror}"
            ) from None
        return read_header(self.path)

    def _write_header(self, header: HeaderRecord) -> None:
        file = self.path / HEADER
        if file.exists():
            return
        whole = self.path / f".{HEADER}.{os.getpid()}"
        whole.write_text(json.dumps(header, indent=2) + "\n", "utf-8")
        try:
            # Fails if another process was faster; nobody ever reads half a header.
            os.link(whole, file)
        except FileExistsError:
            pass
        finally:
            whole.unlink()

    def refresh(self) -> list[SampleRecord]:
        """Return the samples that any process has appended since the last call.

        Raises:
            ConfigError: a line is damaged.
        """
        try:
            with self.samples.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        new = list(parse_samples(data, self.samples, first_line=self._lines + 1))
        self._offset += len(data)
        self._lines += len(new)
        self.finished.update((key_of(sample), sample) for sample in new)
        return new

    def append(self, sample: SampleRecord) -> None:
        """Write a sample's line to the disk; the next `refresh` returns it."""
        append_lines(self.samples, json.dumps(sample, ensure_ascii=True).encode() + b"\n")

    @contextmanager
    def claim(self, position: int) -> Iterator[bool]:
        """Claim the sample at a position for the duration of the block.

        Yields:
            Whether the claim is ours; False if another process has it.
        """
        if self._claims is None:
            # Stays open: closing any descriptor of the file would release every POSIX lock on it.
            self._claims = (self.path / LOCK).open("ab")
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, position)

    def close(self) -> None:
        """Release every claim."""
        if self._claims is not None:
            self._claims.close()
            self._claims = None


class ElsewhereError(PDRError, RuntimeError):
    """Another process works on the thread."""

    def __init__(self, thread_id: str) -> None:
        super().__init__(f"thread {thread_id!r} is run by another process")


class SampleExecutor(Protocol):
    """Runs samples: in this process (`LocalExecutor`) or on a cluster (`RayExecutor`)."""

    async def run(self, sample: Sample, on_event: OnEvent) -> SampleRecord:
        """Run a sample to its end and return its record, whose reason is `failed` if it failed.

        Raises:
            DrainedError: the run was asked to stop.
            ElsewhereError: another process has the sample.
        """


class EvalWatcher:
    """Told how a run proceeds; a display overrides what it shows."""

    def finished(self, record: SampleRecord) -> None:
        """Take a finished sample, from this process, another one, or an earlier one."""

    def started(self, sample: Sample) -> None:
        """Take a sample that this process begins."""

    def event(self, sample: Sample, event: RunEvent) -> None:
        """Take an event of a sample."""

    def waiting(self, number: int) -> None:
        """Take the number of samples that are left, which other processes all work on."""


@dataclass(slots=True)
class EvalRunner:
    """One process at work on one run."""

    executor: SampleExecutor
    folder: RunFolder
    max_calls: int
    """Most calls at once. A sample counts as many calls as its widest round has drafts. With more
    samples at once, their calls would wait for one another, and the seconds of each sample would
    grow."""
    watcher: EvalWatcher
    control: RunControl
    """Asked to drain, it stops the run."""
    claim: Claim | None = None
    """None: the locks of the run folder are enough."""
    forget: Callable[[str], Awaitable[None]] | None = None
    """Deletes the thread of a recorded sample; None keeps it for inspection."""
    alive: Callable[[], Awaitable[bool]] | None = None
    """Tells whether the endpoint answers; None assumes that it does."""
    retry_failed: bool = False
    """Whether samples that an earlier process recorded as failed are run again."""
    _slots: asyncio.Semaphore = field(init=False)
    """One for each call that may be made now."""
    _failures: list[tuple[Sample, SampleRecord]] = field(default_factory=list)
    """Not recorded before a success shows that the endpoint is alive."""
    _elsewhere: list[Sample] = field(default_factory=list)
    _retried: set[Key] = field(default_factory=set)
    """Keys of recorded failures that are run again."""

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.max_calls)

    async def work(self, samples: list[Sample]) -> None:
        """Work until no sample is owed.

        Raises:
            DrainedError: the run was asked to stop; its unfinished samples can be resumed.
            EndpointError: too many samples in a row failed.
        """
        self._refresh()
        if self.retry_failed:
            self._retried = {
                key for key, each in self.folder.finished.items() if each["reason"] == "failed"
            }
        queue = deque(sample for sample in samples if self._is_owed(sample))
        while queue:
            await self._run_all(queue)
            self._refresh()
            queue = deque(sample for sample in self._elsewhere if self._is_owed(sample))
            self._elsewhere = []
            if queue:
                self.watcher.waiting(len(queue))
                await asyncio.sleep(_POLL_S)
                self._stop_if_asked()
        await self._record_last_failures()

    async def _run_all(self, queue: deque[Sample]) -> None:
        """Start every sample of the queue as soon as its calls have slots."""
        try:
            async with asyncio.TaskGroup() as group:
                while queue and not self.control.drain_requested:
                    sample = queue.popleft()
                    calls = min(max((1, *sample.config.widths)), self.max_calls)
                    for _ in range(calls):
                        await self._slots.acquire()
                    if not self.control.drain_requested:
                        group.create_task(self._claim_and_run(sample, calls))
        except BaseExceptionGroup as several:
            raise _first(several) from None
        self._stop_if_asked()

    async def _claim_and_run(self, sample: Sample, calls: int) -> None:
        try:
            async with AsyncExitStack() as held:
                # The folder's lock first: it is free as soon as its process is dead.
                mine = held.enter_context(self.folder.claim(sample.position))
                if mine and self.claim is not None:
                    mine = await held.enter_async_context(self.claim(sample.thread_id))
                if not mine:
                    raise ElsewhereError(sample.thread_id)
                self._refresh()
                if self._is_owed(sample):
                    await self._run(sample)
        except ElsewhereError:
            self._elsewhere.append(sample)
        except DrainedError:
            pass  # `work` raises it once for all samples
        finally:
            for _ in range(calls):
                self._slots.release()

    async def _run(self, sample: Sample) -> None:
        self.watcher.started(sample)
        record = await self.executor.run(sample, partial(self.watcher.event, sample))
        if record["reason"] != "failed":
            await self._record(sample, record)
            await self._record_failures()
            return
        self._failures.append((sample, record))
        if len(self._failures) >= MOST_FAILURES:
            raise EndpointError(
                f"{len(self._failures)} samples failed one after another, the last because: "
                f"{record['error']}; none of them is recorded, the same command runs them again"
            )

    async def _record(self, sample: Sample, record: SampleRecord) -> None:
        await asyncio.to_thread(self.folder.append, record)
        self._refresh()
        if self.forget is not None:
            await self.forget(sample.thread_id)

    async def _record_failures(self) -> None:
        failures, self._failures = self._failures, []
        for sample, record in failures:
            await self._record(sample, record)

    async def _record_last_failures(self) -> None:
        """Record failures that no success followed, unless the endpoint is dead.

        Raises:
            EndpointError: the endpoint is dead.
        """
        if self._failures and self.alive is not None and not await self.alive():
            raise EndpointError(
                f"the endpoint no longer answers: {self._failures[-1][1]['error']}; the last "
                f"{len(self._failures)} that failed are not recorded"
            )
        await self._record_failures()

    def _refresh(self) -> None:
        """Read what any process has appended."""
        for record in self.folder.refresh():
            self._retried.discard(key_of(record))
            self.watcher.finished(record)

    def _is_owed(self, sample: Sample) -> bool:
        return sample.key not in self.folder.finished or sample.key in self._retried

    def _stop_if_asked(self) -> None:
        if self.control.drain_requested:
            raise DrainedError(self.folder.path.name)


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group of tasks."""
    error: BaseException = several
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
