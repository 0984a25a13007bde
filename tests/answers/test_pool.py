"""Work that does not end is ended, and nothing outlives the program."""

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pdr_graph.answers import Checker, CheckVerdict, Limits, WorkerPool
from pdr_graph.errors import PDRError
from pdr_graph.process import Process
from tests.servers.processes import eventually

# One call into C, which no signal handler and no other thread can interrupt.
FIVES = r"\dfrac{5^{(5^{(5^{(5^5)})} - 4)} - 5}{16}"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Checker]:
    """Start a worker that has one second for each answer."""
    checker = Checker(WorkerPool(Limits(num_workers=2, deadline_s=1)))
    yield checker
    checker.close()


@pytest.mark.security
async def test_hostile_answers_end_at_the_deadline(hasty: Checker) -> None:
    """And the event loop goes on meanwhile."""
    await hasty.check(r"\sqrt{x}+1", r"\boxed{1+\sqrt{x}}")  # a worker is ready
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    result = await hasty.check("42", f"\\boxed{{{FIVES}}}")
    ticking.cancel()
    assert result.verdict is CheckVerdict.TIMEOUT
    assert result.reason == "no verdict within 1 s"
    assert 0.95 < result.seconds < 2
    assert ticks > 30
    assert (await hasty.check(r"\sqrt{y}+1", r"\boxed{1+\sqrt{y}}")).verdict is CheckVerdict.CORRECT


@pytest.mark.parametrize("answer", ["1" * 1_000_000, r"\frac{1}{" * 500 + "2" + "}" * 500])
@pytest.mark.security
async def test_an_answer_that_is_too_long_is_none(hasty: Checker, answer: str) -> None:
    """A million digits, or fractions 500 deep, cost no more than to be seen."""
    result = await hasty.check("42", f"\\boxed{{{answer}}}")
    assert result.verdict is CheckVerdict.NO_ANSWER
    assert result.seconds < 0.5


def echo_pool(tmp_path: Path, **limits: float) -> WorkerPool:
    """Make a pool whose workers start at once and do as they are told."""
    script = tmp_path / "echo.py"
    script.write_text(_ECHO)
    return WorkerPool(Limits(**({"num_workers": 1} | limits)), script)


_ECHO = """
import json, os, sys, time
print("{}", flush=True)
for line in sys.stdin:
    request = json.loads(line)
    time.sleep(request.get("sleep", 0))
    if request.get("die"):
        os._exit(1)
    print(json.dumps({"pid": os.getppid()}), flush=True)
"""
# The parent of a worker is its guard, whose process ids the pool knows.


def test_a_worker_is_kept_while_it_replies(tmp_path: Path) -> None:
    """One after another needs one process."""
    pool = echo_pool(tmp_path, num_workers=4)
    replies = [pool.submit({}).result() for _ in range(5)]
    assert replies == [{"pid": pid} for pid in pool.pids()] * 5
    pool.close()


def test_the_clock_starts_when_a_worker_is_given_the_request(tmp_path: Path) -> None:
    """Waiting for others, and for a start, costs nobody the verdict."""
    pool = echo_pool(tmp_path, deadline_s=1)
    waits = [pool.submit({"sleep": 0.4}) for _ in range(4)]
    assert None not in [wait.result() for wait in waits]
    pool.close()


@pytest.mark.parametrize("request_", [{"sleep": 60}, {"die": True}])
def test_a_worker_that_does_not_reply_is_replaced(
    tmp_path: Path, request_: dict[str, object]
) -> None:
    """There is no reply to that request, and there is to the next."""
    pool = echo_pool(tmp_path, deadline_s=0.5)
    first = pool.submit({}).result()
    assert pool.submit(request_).result() is None
    assert pool.submit({}).result() not in (None, first)
    pool.close()


def test_a_spare_is_started_before_the_deadline(tmp_path: Path) -> None:
    """So that who comes after a request that was ended need not wait for a start."""
    pool = echo_pool(tmp_path, deadline_s=2)
    first = pool.submit({}).result()
    stuck = pool.submit({"sleep": 60})
    while len(pids := pool.pids()) < 2:
        assert not stuck.done()
        time.sleep(0.01)
    assert stuck.result() is None
    assert [pool.submit({}).result()] == [{"pid": pid} for pid in pids if {"pid": pid} != first]
    pool.close()


def test_who_takes_long_and_replies_is_kept(tmp_path: Path) -> None:
    """The spare waits for its turn."""
    pool = echo_pool(tmp_path, deadline_s=4)
    first = pool.submit({}).result()
    assert pool.submit({"sleep": 1.5}).result() == first
    assert pool.submit({}).result() == first
    assert len(pool.pids()) == 2
    pool.close()


def test_it_is_told_when_a_request_is_begun(tmp_path: Path) -> None:
    """Which is when a child is free for it."""
    pool, begun = echo_pool(tmp_path), []
    busy = pool.submit({"sleep": 0.3})
    pool.submit({}, on_begin=lambda: begun.append(busy.done())).result()
    assert begun == [True]
    pool.close()


def test_workers_are_recycled(tmp_path: Path) -> None:
    """Their caches grow."""
    pool = echo_pool(tmp_path, requests_per_child=2)
    replies = [str(pool.submit({}).result()) for _ in range(6)]
    assert len(set(replies)) == 3
    pool.close()


def test_a_cancelled_request_costs_nothing(tmp_path: Path) -> None:
    """What nobody waits for any more is not begun."""
    pool = echo_pool(tmp_path)
    busy, queued = pool.submit({"sleep": 0.5}), pool.submit({"sleep": 60})
    assert queued.cancel()
    assert pool.submit({}).result() == busy.result()
    pool.close()


def test_closing_ends_what_is_being_done(tmp_path: Path) -> None:
    """At once, and the processes are gone."""
    pool = echo_pool(tmp_path, deadline_s=60)
    pool.submit({}).result()
    pids, stuck = pool.pids(), pool.submit({"sleep": 60})
    start = time.monotonic()
    pool.close()
    assert stuck.result(timeout=5) is None
    assert time.monotonic() - start < 5
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_pool_that_is_forgotten_is_closed(tmp_path: Path) -> None:
    """Nobody needs to close one."""
    pool = echo_pool(tmp_path)
    pool.submit({}).result()
    pids = pool.pids()
    del pool
    gc.collect()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_worker_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    """Not a verdict on the answer."""
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(1)")
    pool = WorkerPool(Limits(num_workers=1), script)
    with pytest.raises(PDRError, match="did not start"):
        pool.submit({}).result()
    pool.close()


async def test_a_closed_pool_says_so() -> None:
    """A check after the end is a defect of the caller."""
    checker = Checker()
    checker.close()
    with pytest.raises(PDRError, match="closed"):
        await checker.check(r"\sqrt{x}+1", r"\boxed{1+\sqrt{x}}")


_IDLE_PARENT = """
import sys
from pathlib import Path
from pdr_graph.answers import WorkerPool

pool = WorkerPool(script=Path(sys.argv[1]))
pool.submit({}).result()
print(pool.pids()[0], flush=True)
"""

_BUSY_PARENT = """
import asyncio, sys
from pdr_graph.answers import Checker, Limits, WorkerPool

async def main():
    checker = Checker(WorkerPool(Limits(num_workers=1, deadline_s=600)))
    await checker.check("\\\\sqrt{x}+1", "\\\\boxed{1+\\\\sqrt{x}}")
    print(checker.pool.pids()[0], flush=True)
    await checker.check("42", sys.argv[1])

asyncio.run(main())
"""


def test_a_program_that_ends_takes_its_workers_along(tmp_path: Path) -> None:
    """Without being asked to."""
    echo_pool(tmp_path)
    with _start(_IDLE_PARENT, str(tmp_path / "echo.py")) as parent:
        _ends(int(parent.stdout.readline()))


@pytest.mark.parametrize("with_guard", [False, True])
def test_a_busy_worker_does_not_outlive_a_parent_that_is_killed(*, with_guard: bool) -> None:
    """Though no thread of it gets to run; and, on Linux, though its guard is killed as well."""
    if with_guard and sys.platform != "linux":
        pytest.skip("Linux alone ends a process whose guard and parent are both killed")
    with _start(_BUSY_PARENT, f"\\boxed{{{FIVES}}}") as parent:
        guard = psutil.Process(int(parent.stdout.readline()))
        (worker,) = guard.children()
        time.sleep(0.3)  # now it computes
        parent.kill()
        if with_guard:
            guard.kill()
        _ends(guard.pid)
        _ends(worker.pid)


def _start(program: str, argument: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, argument], stdout=subprocess.PIPE, text=True
    )


def _ends(pid: int) -> None:
    """Wait for a process to end; an exit status that nobody has read may be left."""
    eventually(lambda: Process.of(pid) is None, within_s=10)
