"""Work that does not end is ended, and nothing outlives the program."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from pdr_graph.answers import Checker, Limits, Verdict, WorkerPool
from pdr_graph.errors import PDRError

# From a power that cannot be written down to one that is a single call into C.
HOSTILE = {
    "tower": "9^{9^{9^{9}}}",
    "factorial": "((9!)!)!",
    "powers of two": "2^{16^{64^{16}}}",
    "fives": r"\dfrac{5^{(5^{(5^{(5^5)})} - 4)} - 5}{16}",
    "a million digits": "1" * 1_000_000,
    "nested": r"\frac{1}{" * 500 + "2" + "}" * 500,
}


@pytest.fixture(scope="module")
def hasty() -> Iterator[Checker]:
    """Start a worker that has one second for each answer."""
    checker = Checker(WorkerPool(Limits(num_workers=2, deadline_s=1)))
    yield checker
    checker.close()


async def test_hostile_answers_end_at_the_deadline(hasty: Checker) -> None:
    """And the event loop goes on meanwhile."""
    await hasty.check("x+1", r"\boxed{1+x}")  # a worker is ready
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    result = await hasty.check("42", f"\\boxed{{{HOSTILE['tower']}}}")
    ticking.cancel()
    assert result.verdict is Verdict.TIMEOUT
    assert result.reason == "no verdict within 1 s"
    assert 0.95 < result.seconds < 1.5
    assert ticks > 30


@pytest.mark.parametrize("name", ["fives", "a million digits", "nested"])
async def test_no_hostile_answer_is_right(hasty: Checker, name: str) -> None:
    """Whatever ends it, the next check works."""
    result = await hasty.check("42", f"\\boxed{{{HOSTILE[name]}}}")
    assert result.verdict in (Verdict.TIMEOUT, Verdict.UNPARSEABLE, Verdict.NO_ANSWER)
    assert (await hasty.check("x+1", r"\boxed{1+x-0}")).verdict is not Verdict.WRONG


async def test_a_worker_that_dies_is_replaced(hasty: Checker) -> None:
    """Its answer gets no verdict, and the next one does."""
    await hasty.check("x+2", r"\boxed{2+x}")
    for pid in hasty.pool.pids():
        os.kill(pid, signal.SIGKILL)
    lost = await hasty.check("x+3", r"\boxed{3+x}")
    assert lost.verdict in (Verdict.TIMEOUT, Verdict.CORRECT)
    assert (await hasty.check("x+4", r"\boxed{4+x}")).verdict is Verdict.CORRECT


async def test_workers_are_recycled() -> None:
    """Their caches grow."""
    pool = WorkerPool(Limits(num_workers=1, deadline_s=20, requests_per_child=1))
    checker = Checker(pool)
    assert (await checker.check("x+1", r"\boxed{1+x}")).correct
    before = pool.pids()
    assert (await checker.check("x+2", r"\boxed{2+x}")).correct
    assert not set(pool.pids()) & set(before)
    checker.close()
    assert pool.pids() == []


async def test_a_closed_pool_says_so() -> None:
    """A check after the end is a defect of the caller."""
    checker = Checker()
    checker.close()
    with pytest.raises(PDRError, match="closed"):
        await checker.check("x+1", r"\boxed{1+x}")


_PARENT = """
import asyncio, sys
from pdr_graph.answers import Checker, Limits, WorkerPool

async def main():
    checker = Checker(WorkerPool(Limits(num_workers=1, deadline_s=60)))
    await checker.check("x+1", r"\\boxed{1+x}")
    print(checker.pool.pids()[0], flush=True)
    if sys.argv[1] == "busy":
        await checker.check("42", r"\\boxed{9^{9^{9^{9}}}}")

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["exit", "busy"])
def test_no_worker_outlives_its_parent(end: str) -> None:
    """Neither a normal exit nor SIGKILL in mid-check leaves one behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, end], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        if end == "busy":
            time.sleep(0.3)
            parent.kill()
    # Known is that it ended; a zombie may wait for whoever adopted it.
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"worker {pid} is still running")
