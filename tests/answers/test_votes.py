"""A vote ends in bounded time, whatever the answers are, and holds up no other."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdr_graph import Parts, preset, solve
from pdr_graph.answers import (
    Checker,
    Limits,
    MathAnswers,
    VoteBudget,
    WorkerPool,
    clusters,
    one_vote,
)
from tests.answers.test_pool import echo_pool

pytestmark = pytest.mark.security

HARD = [rf"\dfrac{{5^{{(5^{{(5^{{(5^5)}})}} - 4)}} - {k}}}{{16}}" for k in range(5, 21)]
"""Each is one call into C that does not end; no two are the same text."""
ORDINARY = [r"\sqrt{7}+x", r"x+\sqrt{7}", r"\sqrt{7}+x+0", r"\sqrt{5}\pi"]


@pytest.fixture(scope="module")
def hasty() -> Iterator[MathAnswers]:
    """Answers whose comparisons have little time, so that the tests take little."""
    kind = MathAnswers(Checker(WorkerPool(Limits(deadline_s=1, vote_s=0.5))))
    asyncio.run(kind.same(r"\sqrt{x}+1", r"1+\sqrt{x}"))  # a worker is ready
    yield kind
    kind.close()


async def test_hard_answers_use_up_the_budget_of_their_vote_and_no_more(hasty) -> None:
    """Each counts by itself, and the ordinary ones among them are grouped as ever."""
    answers = [*HARD[:4], *ORDINARY]
    began = time.monotonic()
    with one_vote() as vote:
        groups = await clusters(hasty, answers)
        again = await clusters(hasty, answers)
    assert time.monotonic() - began < 6
    assert groups == again
    assert groups == [[4, 5, 6], [0], [1], [2], [3], [7]]
    assert vote.spent_s == pytest.approx(0.5)
    assert any("no verdict within 1 s" in note for note in vote.notes())
    assert any("the vote has used up its 0.5 s" in note for note in vote.notes())


async def test_a_slow_comparison_ends_without_a_new_process(hasty) -> None:
    """A copy of the worker is ended, and the next one is there at once."""
    before = set(hasty.checker.pool.pids())
    seconds = []
    for number in (11, 12, 13):  # the best of some: other work on the machine only adds to it
        assert not await hasty.same(HARD[number - 1], HARD[number])
        began = time.monotonic()
        assert await hasty.same(rf"\sqrt{{{number}}}+x", rf"x+\sqrt{{{number}}}")
        seconds.append(time.monotonic() - began)
        if seconds[-1] < 0.5:
            break
    assert min(seconds) < 0.5
    assert before & set(hasty.checker.pool.pids())


async def test_ordinary_answers_pass_while_those_of_another_vote_are_hard(hasty) -> None:
    """One worker is kept for them."""

    async def waits() -> list[float]:
        found = []
        for number in range(20):
            began = time.monotonic()
            root = rf"\sqrt{{{1009 + number}}}"
            assert await hasty.same(f"{root}+x", f"x+{root}")
            found.append(time.monotonic() - began)
            await asyncio.sleep(0.03)
        return sorted(found)

    hard = [asyncio.create_task(clusters(hasty, HARD[start:])) for start in (6, 7)]
    await asyncio.sleep(1.3)  # both have shown that they are slow
    found = await waits()
    assert not any(task.done() for task in hard)
    # Behind one hard answer each would wait for a second; the rest is for a busy machine.
    assert found[len(found) // 2] < 0.3
    for task in hard:
        task.cancel()
    await asyncio.wait(hard)


def test_votes_take_turns(tmp_path: Path) -> None:
    """Who asks for much waits for who asks for little, once."""
    pool = echo_pool(tmp_path)
    order: list[str] = []
    much, little = VoteBudget(), VoteBudget()
    asked = [pool.submit({"sleep": 0.2}, vote=much)]
    for name, vote in [("much", much)] * 4 + [("little", little)] * 2:
        asked.append(pool.submit({}, vote=vote, on_begin=lambda name=name: order.append(name)))
    for each in asked:
        each.result()
    assert order[:4].count("little") == 2
    pool.close()


async def test_a_full_queue_lets_callers_wait(tmp_path: Path) -> None:
    """It does not grow beyond its bound, and nobody is lost."""
    pool = echo_pool(tmp_path, most_waiting=3)
    tasks = [asyncio.create_task(pool.ask({"sleep": 0.02}, VoteBudget())) for _ in range(12)]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, pool.num_waiting)
        await asyncio.sleep(0.01)
    assert None not in [task.result() for task in tasks]
    assert most <= 3
    pool.close()


_BABBLER = """
import sys
print("{}", flush=True)
for line in sys.stdin:
    while True:
        sys.stdout.write("x" * 65536)
"""


def test_a_reply_without_end_is_ended(tmp_path: Path) -> None:
    """Its bytes are bounded as well as its time."""
    script = tmp_path / "babbler.py"
    script.write_text(_BABBLER)
    pool = WorkerPool(Limits(num_workers=1, deadline_s=30), script)
    began = time.monotonic()
    assert pool.submit({}).result() is None
    assert time.monotonic() - began < 5
    pool.close()


def test_a_request_that_takes_all_memory_is_ended(tmp_path: Path) -> None:
    """There is no reply to it, and there is to the next, from the same process."""
    script = tmp_path / "hungry.py"
    script.write_text(
        "import json\n"
        "from pdr_graph.answers.worker import serve\n"
        "def answer(line):\n"
        "    return {'size': len('x' * json.loads(line)['size'])}\n"
        "serve(lambda: answer)\n"
    )
    pool = WorkerPool(Limits(num_workers=1, memory_bytes=1 << 28), script)
    assert pool.submit({"size": 1}).result() == {"size": 1}
    before = pool.pids()
    assert pool.submit({"size": 1 << 29}).result() is None
    assert pool.submit({"size": 2}).result() == {"size": 2}
    assert pool.pids() == before
    pool.close()


async def test_the_events_say_what_was_not_compared(mock, connect) -> None:
    """And so do the notes of the run."""
    mock.configure(answers=HARD[:2])
    events: list[dict[str, object]] = []
    config = preset("majority", widths=(2,), max_tokens=200, solution_tokens=128, seed=7)
    result = await solve("x", config, model=connect(), parts=Parts(on_event=events.append))
    told = [str(event["text"]) for event in events if event["event"] == "note"]
    assert any("1 comparison of answers has no verdict" in text for text in told)
    assert set(told) <= set(result.notes)
