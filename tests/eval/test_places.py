"""Room for calls."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.eval.runner import CallSlots


@given(total=st.integers(1, 8), wanted=st.lists(st.integers(1, 12), max_size=20))
def test_no_more_are_taken_than_there_are_and_everyone_gets_a_turn(total, wanted):
    """Whatever is asked for, in the order in which it is asked."""

    async def go() -> None:
        slots, order, taken = CallSlots(total), [], 0

        async def work(index: int, number: int) -> None:
            nonlocal taken
            got = await slots.acquire(number)
            order.append(index)
            taken += got
            assert got == min(number, total)
            assert taken <= total
            await asyncio.sleep(0)
            taken -= got
            slots.release(got)

        await asyncio.gather(*(work(*each) for each in enumerate(wanted)))
        assert order == list(range(len(wanted)))
        assert slots.free == total

    asyncio.run(go())


async def test_who_is_cancelled_while_waiting_holds_up_nobody():
    """Neither before its turn nor at it."""
    slots = CallSlots(2)
    await slots.acquire(2)
    gone, next_one = (asyncio.create_task(slots.acquire(n)) for n in (2, 1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    slots.release(2)
    assert await next_one == 1
    late = asyncio.create_task(slots.acquire(2))
    await asyncio.sleep(0)
    slots.release(1)  # its turn has come, and it is cancelled before it knows
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    assert slots.free == 2
