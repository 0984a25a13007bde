"""What a node spends, as one ledger row; and what it asks the model with."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from pdr_graph.errors import CallError
from pdr_graph.llm.asker import derived_seed
from pdr_graph.llm.usage import Meter, Spent, Usage, read_usage
from tests.fakes import make_step, prompts_of


def call(tokens: int, seconds: float = 1.0, **fields) -> Spent:
    return Spent(requests=1, usage=[Usage(tokens, completion=tokens)], seconds=seconds, **fields)


def used(prompt: int, completion: int, text: str = "ok") -> AIMessage:
    usage = {"input_tokens": prompt, "output_tokens": completion, "total_tokens": 0}
    return AIMessage(text, usage_metadata=usage)


def test_of_parallel_calls_the_largest_is_on_the_critical_path():
    """Calls side by side: tokens add up in all, the longest counts in sequence."""
    meter = Meter("drafter", 1, 2)
    meter.add([call(10, 1.0, nominal=64), call(30, 3.0, nominal=64), call(20, 2.0, nominal=64)])
    row = meter.row()
    assert (row["prompt_tokens"], row["completion_tokens"], row["calls"]) == (60, 60, 3)
    assert (row["critical_tokens"], row["seconds"]) == (60, 3.0)
    assert (row["nominal_tokens"], row["critical_nominal"]) == (192, 64)


def test_of_calls_one_after_another_all_are_on_the_critical_path():
    """Turns of one node follow one another."""
    meter = Meter("distiller", 1, 3)
    meter.add([call(10), call(5)])
    meter.add([call(20)])
    row = meter.row()
    assert (row["critical_tokens"], row["seconds"]) == (60, 2.0)


@given(
    turns=st.lists(
        st.lists(
            st.builds(call, st.integers(0, 1000), st.floats(0, 99), nominal=st.integers(0, 1000)),
            max_size=4,
        ),
        max_size=4,
    )
)
def test_the_critical_path_is_part_of_the_whole(turns):
    """However calls are grouped into turns."""
    meter = Meter("tournament", 1, 3)
    for turn in turns:
        meter.add(turn)
    row = meter.row()
    assert row["critical_tokens"] <= row["prompt_tokens"] + row["completion_tokens"]
    assert row["critical_nominal"] <= row["nominal_tokens"]


def test_attempts_of_one_call_add_up_on_its_path():
    """A retry follows the attempt before it, and is charged with it."""
    twice = Spent(
        requests=2, usage=[Usage(10, completion=5, estimated=True), Usage(10)], nominal=64
    )
    meter = Meter("refiner", 1, 4)
    meter.add([twice])
    row = meter.row()
    assert (row["calls"], row["critical_tokens"], row["nominal_tokens"]) == (2, 25, 64)
    assert row["estimated"] is True


def test_failed_and_aborted_calls_are_counted():
    """Calls that did not come back are in the row too."""
    meter = Meter("drafter", 2, 5)
    meter.add([call(1, failed=1), call(1, aborted=1), call(1)])
    row = meter.row()
    assert (row["round"], row["node"], row["step"]) == (2, "drafter", 5)
    assert (row["calls"], row["failed"], row["aborted"]) == (3, 1, 1)


def test_cached_and_reasoning_tokens_are_parts_of_the_counts():
    """They are reported beside prompt and completion, not added to them."""
    meter = Meter("drafter", 1, 1)
    meter.add([Spent(usage=[Usage(100, cached=80, completion=50, reasoning=40)])])
    row = meter.row()
    assert (row["cached_tokens"], row["reasoning_tokens"]) == (80, 40)
    assert row["critical_tokens"] == 150


def test_a_row_is_a_copy():
    """What was reported does not change when the node goes on spending."""
    meter = Meter("drafter", 1, 1)
    before = meter.row()
    meter.add([call(1)])
    assert (before["calls"], meter.row()["calls"]) == (0, 1)


def test_a_workspace_measured_by_the_estimate_marks_the_row():
    """The mark is for any estimate in the row, not for calls alone."""
    meter = Meter("distiller", 1, 1)
    assert meter.row()["estimated"] is False
    assert meter.row(estimated=True)["estimated"] is True


def test_usage_is_read_as_langchain_gives_it():
    """Details are optional, and may be None."""
    message = AIMessage(
        "x",
        usage_metadata={
            "input_tokens": 10,
            "output_tokens": 7,
            "total_tokens": 17,
            "input_token_details": {"cache_read": 8},
            "output_token_details": {"reasoning": 5},
        },
    )
    assert read_usage(message) == Usage(10, 8, 7, 5)
    assert read_usage(used(10, 7)) == Usage(10, 0, 7, 0)
    assert read_usage(AIMessage("x")) is None


# ------------------------------------------------------------------------------ asking


async def test_calls_side_by_side_are_answered_in_order():
    """One reply for each set of values, each with a seed of its own."""
    step = make_step([], [used(10, 5, "a"), used(10, 9, "b")])
    replies = await step.ask.each(
        "draft", [{"problem": "P1", "answer_format": ""}, {"problem": "P2", "answer_format": ""}]
    )
    assert [reply.solution for reply in replies] == ["a", "b"]
    assert [prompt[:2] for prompt in prompts_of(step)] == ["P1", "P2"]
    row = step.ask.meter.row()
    assert (row["calls"], row["critical_tokens"]) == (2, 19)


async def test_calls_side_by_side_are_samples_of_their_own():
    """The same prompt twice is drawn with two seeds."""
    step = make_step([], ["x"])
    await step.ask.each("draft", [{"problem": "P", "answer_format": ""}] * 4)
    assert len({record["seed"] for record in step.ask.trace.records}) == 4


async def test_one_failure_side_by_side_is_raised_when_all_are_in():
    """What the others cost is in the meter before the error is out."""
    step = make_step([], [ValueError("no"), used(10, 5)])
    with pytest.raises(CallError, match="no"):
        await step.ask.each("draft", [{"problem": "P", "answer_format": ""}] * 2)
    row = step.ask.meter.row()
    assert (row["calls"], row["failed"], row["prompt_tokens"]) == (2, 1, 10)


async def test_every_call_is_traced_whole():
    """Prompt, thought, solution, tokens and seed; a failed call too, with its error."""
    step = make_step([], [used(10, 5, "<think>hm</think>yes"), ValueError("broken")])
    await step.ask.one("draft", problem="P", answer_format="F", index=3)
    with pytest.raises(CallError):
        await step.ask.one("draft", problem="P", answer_format="F")
    good, bad = step.ask.trace.records
    assert (good["thought"], good["solution"], good["error"]) == ("hm", "yes", "")
    assert (good["index"], good["prompt_tokens"], good["completion_tokens"]) == (3, 10, 5)
    assert good["seed"] == step.ask.sampling("draft", 3).seed
    assert (bad["solution"], bad["error"]) == ("", "call failed: broken")


async def test_a_cancelled_call_is_traced_and_charged():
    """Cutting a straggler leaves a record of what was asked and an estimate of its cost."""
    started = asyncio.Event()

    class Slow(type(make_step().ask.client.model)):
        async def _agenerate(self, *args, **kwargs):
            started.set()
            await asyncio.sleep(60)

    step = make_step()
    step.ask.client.model = Slow()
    task = asyncio.ensure_future(step.ask.one("draft", problem="P", answer_format="F"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    row = step.ask.meter.row()
    assert (row["calls"], row["aborted"], row["estimated"]) == (1, 1, True)
    assert step.ask.trace.records[0]["error"] == "cancelled"


@given(seed=st.integers(0, 2**31 - 1), round_number=st.integers(0, 50), index=st.integers(0, 500))
def test_a_derived_seed_is_one_that_servers_take(seed, round_number, index):
    """It fits a signed 32-bit integer, and is the same every time."""
    derived = derived_seed(seed, "draft", "drafter", round_number, index)
    assert 0 <= derived < 2**31
    assert derived == derived_seed(seed, "draft", "drafter", round_number, index)


def test_calls_of_one_run_have_seeds_of_their_own():
    """Another draft, round, node, template or run is another seed."""
    parts = [
        (seed, template, node, round_number, index)
        for seed in (0, 1)
        for template in ("draft", "improve")
        for node in ("drafter", "refiner")
        for round_number in (1, 2)
        for index in range(64)
    ]
    assert len({derived_seed(*each) for each in parts}) == len(parts)
