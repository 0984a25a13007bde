"""A pool of processes for work that may never end.

Each worker is one thread and one child process, which answers requests, a JSON object a line. The
thread hands a request to the child and waits as long as the deadline allows; then it kills the
child and starts another. The clock is the thread's, and no signals are used, so the outcome is the
same from the main thread, from any other thread and from a coroutine of any event loop.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdr_graph.errors import PDRError
from pdr_graph.process import guarded, kill_group

Message = dict[str, Any]
"""A request to the script, or its reply."""

WORKER = Path(__file__).with_name("worker.py")
"""The script that runs math-verify: lines in, lines out, of which the first says it is ready."""

_CLOSED = "the answer checker was closed"
# Importing sympy takes 1 to 3 s, and many times that on a busy machine.
_START_TIMEOUT_S = 120.0
# Share of the deadline after which a second child is started, which takes seconds: a child that
# has not replied by then will most likely have to be killed.
_SPARE_AFTER = 0.25


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
        poll, line = select.poll(), self._part
        poll.register(self._process.stdout, select.POLLIN)
        end = time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                self._part = line
                return None
            part = os.read(self._process.stdout.fileno(), 65_536)
            if not part:
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
    """For one request, from the moment when a child that is ready gets it."""
    memory_bytes: int = 1 << 30
    """Address space of a child."""
    requests_per_child: int = 500
    """After these a child is replaced, since sympy's caches grow."""


@dataclass(slots=True)
class _Job:
    request: Message
    future: Future[Message | None]
    on_begin: Callable[[], None]


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
    jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue)
    # Reentrant, since the collector may call `close` in a thread that holds it.
    lock: threading.RLock = field(default_factory=threading.RLock)
    threads: list[threading.Thread] = field(default_factory=list)
    num_waiting: int = 0
    """Jobs that are queued or under way."""
    children: set[Child] = field(default_factory=set)
    closed: bool = False

    def close(self) -> None:
        """Kill every child and wait for the threads to end."""
        with self.lock:
            if self.closed or self.owner != os.getpid():
                return
            self.closed = True
            children, threads = list(self.children), list(self.threads)
        for child in children:
            child.kill()
        for _ in threads:
            self.jobs.put(None)
        for thread in threads:
            # The collector may have called us from one of them.
            if thread is not threading.current_thread():
                thread.join(timeout=5)

    def work(self) -> None:
        """Do jobs with one child after another; the body of a thread."""
        hands = _Hands()
        while (job := self.jobs.get()) is not None:
            if job.future.set_running_or_notify_cancel():
                self._serve(job, hands)
            else:
                self._count_done()
        self._drop(hands.child)
        self._drop(hands.spare)

    def _count_done(self) -> None:
        with self.lock:
            self.num_waiting -= 1

    def _serve(self, job: _Job, hands: _Hands) -> None:
        """Do one job, and make a child ready for the next."""
        try:
            child = self._take(hands)
            job.on_begin()
            reply = self._ask(job.request, child, hands)
        except (PDRError, OSError) as error:
            self._drop(hands.child)
            hands.child = None
            self._count_done()
            job.future.set_exception(error)
            return
        self._count_done()
        job.future.set_result(reply)
        if reply is not None and child.num_requests < self.limits.requests_per_child:
            return
        self._drop(child)
        hands.child = None
        with suppress(PDRError, OSError):  # the next job tries again, and reports the error
            self._take(hands)

    def _ask(self, request: Message, child: Child, hands: _Hands) -> Message | None:
        """Return the reply; None if the child took too long or ended."""
        end = time.monotonic() + self.limits.deadline_s
        child.ask(request)
        reply = child.reply(self.limits.deadline_s * _SPARE_AFTER)
        if reply is not None:
            return reply
        if hands.spare is None:
            with suppress(PDRError, OSError):
                hands.spare = self._launch()
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

    def submit(
        self, request: Message, *, on_begin: Callable[[], None] = lambda: None
    ) -> Future[Message | None]:
        """Queue a request; its result is None if the child had to be killed.

        Args:
            request: For the child.
            on_begin: Called from another thread when a child that is ready gets the request.

        Raises:
            PDRError: The pool was closed.
        """
        if self._state.owner != os.getpid():
            self._open()  # this process is a fork: it has no threads, and the children are not its
        state = self._state
        job = _Job(request, Future(), on_begin)
        with state.lock:
            if state.closed:
                raise PDRError(_CLOSED)
            state.num_waiting += 1
            state.jobs.put(job)
            if len(state.threads) < min(state.num_waiting, self.limits.num_workers):
                thread = threading.Thread(target=state.work, name="answer-checker", daemon=True)
                state.threads.append(thread)
                thread.start()
        return job.future

    def pids(self) -> list[int]:
        """Return the process ids of the children that are alive now, those of their guards."""
        with self._state.lock:
            return [child.pid for child in self._state.children]

    def close(self) -> None:
        """End the children, for good; the interpreter does so when it ends."""
        self._finalizer()
