"""Which calls are worked on together, and what becomes of those that left or failed."""

import asyncio
import threading

import pytest

from pdr_graph.policy import CallBatcher


class Doubling:
    """Doubles numbers, and remembers in which batches they came."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()

    def __call__(self, tickets):
        self.batches.append([ticket.request for ticket in tickets])
        self.threads.add(threading.current_thread().name)
        if any(ticket.request < 0 for ticket in tickets):
            raise ValueError("a negative number")
        return [2 * ticket.request for ticket in tickets]


async def test_calls_that_wait_at_once_are_one_batch():
    """Each gets its own answer, from a thread that is not the event loop's."""
    work = Doubling()
    batcher = CallBatcher(work)
    answers = await asyncio.gather(*(batcher.ask(each) for each in range(50)))
    assert answers == [2 * each for each in range(50)]
    assert work.batches == [list(range(50))]
    assert work.threads.isdisjoint({threading.current_thread().name})


async def test_what_goes_wrong_goes_wrong_for_its_batch_alone():
    """Every caller of the batch is told, and the next one is served."""
    batcher = CallBatcher(Doubling())
    outcomes = await asyncio.gather(batcher.ask(1), batcher.ask(-1), return_exceptions=True)
    assert [str(each) for each in outcomes] == ["a negative number"] * 2
    assert await batcher.ask(4) == 8


async def test_a_caller_that_left_before_its_batch_began_costs_nothing():
    """Its work is not done."""
    work = Doubling()
    batcher = CallBatcher(work, settle_s=0.05)
    calls = [asyncio.ensure_future(batcher.ask(each)) for each in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    assert await asyncio.gather(calls[0], calls[2]) == [0, 4]
    assert work.batches == [[0, 2]]


async def test_a_caller_that_leaves_meanwhile_is_known_to_have_left():
    """Whoever works on a batch can see whom to stop working for."""
    started, go_on = threading.Event(), threading.Event()
    left: list[list[bool]] = []

    def work(tickets):
        started.set()
        go_on.wait()
        left.append([ticket.left for ticket in tickets])
        return [0 for _ in tickets]

    batcher = CallBatcher(work)
    calls = [asyncio.ensure_future(batcher.ask(each)) for each in range(2)]
    await asyncio.to_thread(started.wait)
    calls[0].cancel()
    await asyncio.sleep(0)
    go_on.set()
    assert await calls[1] == 0
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    assert left == [[True, False]]


async def test_a_batch_waits_for_every_run_that_goes_on():
    """However much later than the others one of them asks."""
    work = Doubling()
    batcher = CallBatcher(work, patience_s=60.0)
    asked = asyncio.Event()

    async def run(number: int) -> int:
        with batcher.going_on():
            if number == 2:
                await asked.wait()
                await asyncio.sleep(0.05)
            asked.set()
            return await batcher.ask(number)

    assert await asyncio.gather(*map(run, range(3))) == [0, 2, 4]
    assert [sorted(each) for each in work.batches] == [[0, 1, 2]]


async def test_the_calls_of_a_round_are_one_batch_though_they_come_one_by_one():
    """Tasks that a run starts are the run's; a turn of the loop lies between their calls."""
    work = Doubling()
    batcher = CallBatcher(work, patience_s=60.0)

    async def call(number: int) -> int:
        for _ in range(number):
            await asyncio.sleep(0)
        return await batcher.ask(number)

    with batcher.going_on():
        await asyncio.gather(*map(call, range(20)))
    assert work.batches == [list(range(20))]


async def test_a_run_that_is_busy_with_something_else_does_not_hold_the_others_up():
    """After a while without calls they go on without it."""
    batcher = CallBatcher(Doubling(), patience_s=0.05)
    released = asyncio.Event()

    async def busy() -> None:
        with batcher.going_on():
            await released.wait()

    async def asking() -> int:
        with batcher.going_on():
            return await batcher.ask(1)

    other = asyncio.ensure_future(busy())
    await asyncio.sleep(0)
    assert await asking() == 2
    released.set()
    await other


def test_one_batcher_serves_one_event_loop_after_another():
    """A trainer starts a loop for each step."""
    batcher = CallBatcher(Doubling())
    assert [asyncio.run(batcher.ask(each)) for each in range(3)] == [0, 2, 4]
