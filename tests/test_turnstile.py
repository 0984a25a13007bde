"""Calls start one by one, so that a burst of them leaves the event loop to others."""

import asyncio

from pdr_graph.llm.client import Turnstile


async def test_no_two_callers_pass_in_one_turn_of_the_loop():
    """Between two of them whatever else is ready gets its turn."""
    turnstile = Turnstile()
    passed = 0
    most = 0

    async def caller() -> None:
        nonlocal passed
        await turnstile.turn()
        passed += 1

    callers = [asyncio.create_task(caller()) for _ in range(100)]
    while passed < 100:
        before = passed
        await asyncio.sleep(0)
        most = max(most, passed - before)
    await asyncio.gather(*callers)
    assert most == 1


async def test_callers_pass_in_the_order_in_which_they_came():
    """The first draft of a round is not the last to be asked for."""
    turnstile = Turnstile()
    order: list[int] = []

    async def caller(number: int) -> None:
        await turnstile.turn()
        order.append(number)

    await asyncio.gather(*(caller(number) for number in range(20)))
    assert order == list(range(20))


async def test_a_caller_that_gives_up_lets_the_others_pass():
    """A cancelled draft holds up nobody."""
    turnstile = Turnstile()
    callers = [asyncio.create_task(turnstile.turn()) for _ in range(10)]
    await asyncio.sleep(0)
    for caller in callers[:5]:
        caller.cancel()
    done = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 5)
    assert done[5:] == [None] * 5
