"""A pool of processes for work that may never end.

Each worker is one thread and one child process, which answers requests, a JSON object a line. A
child ends what takes too long by itself. The thread waits somewhat longer than that, then it kills
the child and starts another. No signals are used in this process, so the outcome is the same
from the main thread, from any other thread and from a coroutine of any event loop.

The queue is fair: votes take turns, and one worker is kept for those that have not been slow.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdr_graph.errors import PDRError, counted
from pdr_graph.process import guarded, kill_group

Message = dict[str, Any]
"""A request to the script, or its reply."""

WORKER = Path(__file__).with_name("worker.py")
"""The script that runs math-verify: lines in, lines out. Its first line says that it is ready."""

_CLOSED = "the answer checker was closed"
# Importing sympy takes 1 to 3 s, and many times that on a busy machine.
_START_TIMEOUT_S = 120.0
# Share of the deadline after which a second child is started, which takes seconds: a child that
# has not replied by then will most likely have to be killed.
_SPARE_AFTER = 0.25
# Multiple of the deadline by which a healthy child has ended a request that takes too long.
_LATEST = 1.2
# Most bytes of a reply. The values of the longest answer that is read take less than a tenth.
_LARGEST_REPLY = 1 << 24
_LOOK_S = 0.05
# Votes that are remembered as slow.
_MOST_SLOW = 1000

ORDINARY_S = 0.5
"""Seconds of each request that do not count against the budget of its vote. Ordinary answers need a
fiftieth of it, so that a vote on them does not depend on the speed of the machine."""

_MOST_CUT = 16
"""Requests of a vote that may be cut short; then it makes no more of them."""


@dataclass(eq=False)
class VoteBudget:
    """Comparisons that belong together: they share a place in the queue, and a budget."""

    key: Hashable = None
    """Votes with one key share a place in the queue; None is a vote by itself."""
    spent_s: float = 0.0
    """Seconds of its requests beyond `ORDINARY_S` of each."""
    num_cut: int = 0
    """Requests that were ended before the deadline of a request."""
    cut: set[object] = field(default_factory=set)
    """Comparisons that were not made because the budget was spent; they are not tried again."""
    suspects: Counter[str] = field(default_factory=Counter)
    """Answers whose comparisons were cut short, and how often."""
    timeouts: Counter[str] = field(default_factory=Counter)
    """Comparisons without a verdict, by reason."""

    @property
    def place(self) -> Hashable:
        """Its place in the queue."""
        return self if self.key is None else self.key

    def allowed_s(self, limits: Limits) -> float:
        """Return the time that its next request may take."""
        left = max(0.0, limits.vote_s - self.spent_s)
        return min(limits.deadline_s, ORDINARY_S + left) if self.num_cut < _MOST_CUT else 0.0

    def is_spent(self, limits: Limits) -> bool:
        """Tell whether its next request may take less than the deadline."""
        return self.allowed_s(limits) < limits.deadline_s

    def notes(self) -> list[str]:
        """Return a sentence for each reason why answers were not compared."""
        return [
            f"{counted(count, 'comparison')} of answers {'has' if count == 1 else 'have'} no "
            f"verdict ({reason}); answers that were not compared count apart"
            for reason, count in self.timeouts.items()
        ]

    @classmethod
    def current(cls) -> VoteBudget | None:
        """Return the vote that the calling task compares for; None outside a vote."""
        return _CURRENT.get()


_CURRENT: ContextVar[VoteBudget | None] = ContextVar("vote", default=None)


@contextmanager
def one_vote() -> Iterator[VoteBudget]:
    """Make all comparisons in the block within one vote; inside another vote, use that one."""
    around = _CURRENT.get()
    if around is not None:
        yield around
        return
    vote = VoteBudget()
    token = _CURRENT.set(vote)
    try:
        yield vote
    finally:
        _CURRENT.reset(token)


class Child:
    """One child process; it ends with ours."""

    def __init__(self, script: Path, argument: str) -> None:
        # -P keeps the script's folder off the path: its neighbours are not top-level modules.
        self._process = subprocess.Popen(
            guarded([sys.executable, "-P", str(script), argument]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.num_requests = 0
        self._part = b""
        """The beginning of a line that has not come whole yet."""

    def wait_until_ready(self) -> None:
        """Wait for the line that says that it is ready."""
        if self.reply(_START_TIMEOUT_S) is None:
            raise PDRError(
                f"the answer checker's worker did not start within {_START_TIMEOUT_S:g} s: "
                f"try `{sys.executable} -c 'import math_verify'`"
            )

    @property
    def pid(self) -> int:
        """Process id of the child's guard, which leads its process group."""
        return self._process.pid

    def ask(self, request: Message) -> None:
        """Send a request; if the child has ended there will be no reply."""
        self.num_requests += 1
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def reply(self, timeout_s: float) -> Message | None:
        """Return the next line; None if there was none in time, or the child ended."""
        assert self._process.stdout is not None
        poll, line = select.poll(), bytearray(self._part)
        poll.register(self._process.stdout, select.POLLIN)
        end = time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                self._part = bytes(line)
                return None
            part = os.read(self._process.stdout.fileno(), 65_536)
            if not part or len(line) > _LARGEST_REPLY:
                self.kill()  # a child that has closed its output has ended, or is about to
                return None
            line += part
        self._part = b""
        message: Message = json.loads(line)
        return message

    def kill(self) -> None:
        """End the process, whatever it is doing; its thread then finds the pipe at its end."""
        if self._process.poll() is None:
            kill_group(self._process.pid)
        self._process.wait()

    def close(self) -> None:
        """End the process and close its pipes."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a request that was never read
                pipe.close()


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one pool."""

    num_workers: int = 2
    deadline_s: float = 5.0
    """Seconds for one request, from the moment when a ready child gets it."""
    vote_s: float = 5.0
    """Seconds for all requests of a vote, beyond `ORDINARY_S` for each. Once they are spent,
    further requests have `ORDINARY_S` each. After 16 requests that were cut short, the vote makes
    no more."""
    most_waiting: int = 10_000
    """Most requests in the queue; further ones wait for a place."""
    memory_bytes: int = 1 << 30
    """Address space of a child."""
    requests_per_child: int = 500
    """Requests after which a child is replaced, since sympy's caches grow."""


@dataclass(slots=True)
class _Job:
    request: Message
    future: Future[Message | None]
    on_begin: Callable[[], None]
    vote: VoteBudget


class _FairQueue:
    """Jobs that wait, by vote; votes take turns. Its caller holds the lock."""

    def __init__(self, num_workers: int) -> None:
        self._waiting: OrderedDict[Hashable, deque[_Job]] = OrderedDict()
        self._running: Counter[Hashable] = Counter()
        self._slow: dict[Hashable, None] = {}
        """Places whose last request was slow."""
        # One worker is kept for votes that have not been slow, and no vote has all.
        self._most = max(1, num_workers - 1)

    def put(self, job: _Job) -> None:
        """Queue a job behind the others of its vote."""
        self._waiting.setdefault(job.vote.place, deque()).append(job)

    def take(self) -> _Job | None:
        """Return the next job that may run; None if there is none."""
        slow = sum(count for place, count in self._running.items() if place in self._slow)
        for place, jobs in self._waiting.items():
            most_slow = place in self._slow and slow >= self._most
            if self._running[place] >= self._most or most_slow:
                continue
            job = jobs.popleft()
            self._waiting.move_to_end(place)
            if not jobs:
                del self._waiting[place]
            self._running[place] += 1
            return job
        return None

    def mark(self, job: _Job, *, slow: bool) -> None:
        """Remember whether the last request of a vote was slow."""
        if slow:
            self._slow[job.vote.place] = None
        else:
            self._slow.pop(job.vote.place, None)

    def done(self, job: _Job) -> None:
        """Forget a job that has ended, and its vote if it has no other."""
        place = job.vote.place
        self._running[place] -= 1
        if not self._running[place]:
            del self._running[place]
        while len(self._slow) > _MOST_SLOW:
            del self._slow[next(iter(self._slow))]


@dataclass(slots=True)
class _Hands:
    """The children of one worker."""

    child: Child | None = None
    spare: Child | None = None
    """Replaces a child that has to be killed; it may not be ready yet."""


@dataclass
class _State:
    """State that the threads share; it does not refer to the pool, so the pool can be collected."""

    script: Path
    limits: Limits
    owner: int = field(default_factory=os.getpid)
    # Reentrant, since the collector may call `close` in a thread that holds it.
    lock: threading.Condition = field(
        default_factory=lambda: threading.Condition(threading.RLock())
    )
    jobs: _FairQueue = field(init=False)
    threads: list[threading.Thread] = field(default_factory=list)
    num_waiting: int = 0
    """Jobs that are queued or under way."""
    children: set[Child] = field(default_factory=set)
    closed: bool = False

    def __post_init__(self) -> None:
        self.jobs = _FairQueue(self.limits.num_workers)

    def close(self) -> None:
        """Kill every child and wait for the threads to end."""
        with self.lock:
            if self.closed or self.owner != os.getpid():
                return
            self.closed = True
            children, threads = list(self.children), list(self.threads)
            self.lock.notify_all()
        for child in children:
            child.kill()
        for thread in threads:
            # The collector may have called us from one of them.
            if thread is not threading.current_thread():
                thread.join(timeout=5)

    def work(self) -> None:
        """Do jobs with one child after another; the body of a thread."""
        hands = _Hands()
        while (job := self._next()) is not None:
            if job.future.set_running_or_notify_cancel():
                self._serve(job, hands)
            else:
                self._count_done(job)
        self._drop(hands.child)
        self._drop(hands.spare)

    def _next(self) -> _Job | None:
        """Wait for the next job; None once the pool is closed and no job waits."""
        with self.lock:
            while (job := self.jobs.take()) is None:
                if self.closed and self.num_waiting == 0:
                    return None
                self.lock.wait(1 if self.closed else None)
            return job

    def _count_done(self, job: _Job) -> None:
        with self.lock:
            self.num_waiting -= 1
            self.jobs.done(job)
            self.lock.notify_all()

    def _serve(self, job: _Job, hands: _Hands) -> None:
        """Do one job, and make a child ready for the next."""
        try:
            child = self._take(hands)
            job.on_begin()
            reply = self._ask(job, child, hands)
        except (PDRError, OSError) as error:
            self._drop(hands.child)
            hands.child = None
            self._count_done(job)
            job.future.set_exception(error)
            return
        self._count_done(job)
        lives = reply is not None
        job.future.set_result(None if reply is None or "ended" in reply else reply)
        if lives and child.num_requests < self.limits.requests_per_child:
            return
        self._drop(child)
        hands.child = None
        with suppress(PDRError, OSError):  # the next job tries again, and reports the error
            self._take(hands)

    def _ask(self, job: _Job, child: Child, hands: _Hands) -> Message | None:
        """Return the reply, and charge the vote; None if the child took too long or ended."""
        allowed, began = job.vote.allowed_s(self.limits), time.monotonic()
        if allowed <= 0:
            return {"ended": True}
        child.ask({**job.request, "limit_s": allowed})
        reply = child.reply(min(self.limits.deadline_s * _SPARE_AFTER, ORDINARY_S))
        if reply is None:
            with self.lock:
                self.jobs.mark(job, slow=True)
            reply = self._late(child, hands, began)
        used = time.monotonic() - began if reply is None else reply.pop("seconds", allowed)
        with self.lock:
            ended = reply is None or "ended" in reply
            job.vote.num_cut += ended and allowed < self.limits.deadline_s
            job.vote.spent_s += max(0.0, min(used, allowed) - ORDINARY_S)
            self.jobs.mark(job, slow=ended or job.vote.spent_s > 0)
        return reply

    def _late(self, child: Child, hands: _Hands, began: float) -> Message | None:
        """Wait on for a reply, and start a spare before the child is killed."""
        spare_at = began + self.limits.deadline_s * _SPARE_AFTER
        reply = child.reply(max(0.0, spare_at - time.monotonic()))
        if reply is not None:
            return reply
        if hands.spare is None:
            with suppress(PDRError, OSError):
                hands.spare = self._launch()
        end = began + self.limits.deadline_s * _LATEST
        return child.reply(max(0.0, end - time.monotonic()))

    def _take(self, hands: _Hands) -> Child:
        """Return a child that is ready, and wait for it if need be."""
        if hands.child is None:
            child, hands.spare = hands.spare or self._launch(), None
            try:
                child.wait_until_ready()
            except PDRError:
                self._drop(child)
                if self.closed:
                    raise PDRError(_CLOSED) from None
                raise
            hands.child = child
        return hands.child

    def _launch(self) -> Child:
        if self.closed:
            raise PDRError(_CLOSED)
        child = Child(self.script, str(self.limits.memory_bytes))
        with self.lock:
            self.children.add(child)
            if self.closed:
                child.kill()
        return child

    def _drop(self, child: Child | None) -> None:
        if child is not None:
            with self.lock:
                self.children.discard(child)
            child.close()


class WorkerPool:
    """Runs requests in child processes, the first of which starts with the first request."""

    def __init__(self, limits: Limits | None = None, script: Path = WORKER) -> None:
        self.limits = limits or Limits()
        self._script = script
        self._open()

    def _open(self) -> None:
        self._state = _State(self._script, self.limits)
        self._finalizer = weakref.finalize(self, self._state.close)

    async def ask(
        self, request: Message, vote: VoteBudget, *, on_begin: Callable[[], None] = lambda: None
    ) -> Message | None:
        """Return the reply to a request, as `submit`; wait for a place in the queue first.

        Raises:
            PDRError: The pool was closed.
        """
        # Places are freed by threads, and waiting callers may be in any event loop.
        while self.num_waiting >= self.limits.most_waiting:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        return await asyncio.wrap_future(self.submit(request, vote=vote, on_begin=on_begin))

    def submit(
        self,
        request: Message,
        *,
        vote: VoteBudget | None = None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> Future[Message | None]:
        """Queue a request; its result is None if it took too long, or the child ended.

        Args:
            request: For the child.
            vote: The vote of the request; None is a vote of its own.
            on_begin: Called from another thread when a child that is ready gets the request.

        Raises:
            PDRError: The pool was closed.
        """
        if self._state.owner != os.getpid():
            self._open()  # this process is a fork: it has no threads, and the children are not its
        state = self._state
        job = _Job(request, Future(), on_begin, vote or VoteBudget())
        with state.lock:
            if state.closed:
                raise PDRError(_CLOSED)
            state.num_waiting += 1
            state.jobs.put(job)
            state.lock.notify()
            if len(state.threads) < min(state.num_waiting, self.limits.num_workers):
                thread = threading.Thread(target=state.work, name="answer-checker", daemon=True)
                state.threads.append(thread)
                thread.start()
        return job.future

    @property
    def num_waiting(self) -> int:
        """Requests that are queued or under way."""
        return self._state.num_waiting

    def pids(self) -> list[int]:
        """Return the process ids of the children that are alive now, those of their guards."""
        with self._state.lock:
            return [child.pid for child in self._state.children]

    def close(self) -> None:
        """End the children, for good; the interpreter does so when it ends."""
        self._finalizer()
