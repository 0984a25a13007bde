"""The runner runs what is owed, whatever happens to single samples."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langgraph.runtime import RunControl

from pdr_graph.errors import DrainedError, EndpointError
from pdr_graph.eval.arms import make_arms, parse_arm
from pdr_graph.eval.budgets import Budgets
from pdr_graph.eval.problems import Problem
from pdr_graph.eval.records import read_run
from pdr_graph.eval.runner import MOST_FAILURES, ElsewhereError, EvalRunner, EvalWatcher, RunFolder
from pdr_graph.eval.sample import Sample
from tests.eval import recorded


@dataclass
class FakeExecutor:
    """Finishes samples at once, except those that it is told not to."""

    failing: set[str] = field(default_factory=set)
    elsewhere: Counter[str] = field(default_factory=Counter)
    """How often another process has a sample, before that process is gone."""
    drain_at: int | None = None
    """After so many samples it is asked to stop."""
    ran: list[str] = field(default_factory=list)
    control: RunControl = field(default_factory=RunControl)

    async def run(self, sample: Sample, on_event) -> dict:
        name = sample.problem.id
        if self.control.drain_requested:
            raise DrainedError(sample.thread_id)
        self.ran.append(name)
        if len(self.ran) == self.drain_at:
            self.control.request_drain()
        if self.elsewhere[name]:
            self.elsewhere[name] -= 1
            raise ElsewhereError(sample.thread_id)
        if name in self.failing:
            why = f"no luck with {name}"
            return recorded.sample("long_cot", name, answer=None, reason="failed", error=why)
        return recorded.sample(sample.arm.name, name, answer="8")


def samples(number: int, *specs: str) -> list[Sample]:
    """Return one sample for each of so many problems, with the arms in turn."""
    arms = make_arms([parse_arm(spec) for spec in specs or ("long_cot",)], {}, Budgets())
    return [
        Sample(arms[index % len(arms)], Problem(str(index), "?", "1"), 0, index, f"t{index}", 1)
        for index in range(number)
    ]


@pytest.fixture
def folder(tmp_path) -> Iterator[RunFolder]:
    """A run that has begun."""
    folder = RunFolder(tmp_path / "run")
    folder.open(recorded.header())
    yield folder
    folder.close()


def runner(folder: RunFolder, executor: FakeExecutor, at_once: int = 2, **options) -> EvalRunner:
    """Return a runner that makes so many calls at once."""
    return EvalRunner(executor, folder, at_once, EvalWatcher(), executor.control, **options)


def reasons(folder: RunFolder) -> dict[str, str]:
    """Return the reason of each recorded sample."""
    return {each["problem_id"]: each["reason"] for each in read_run(folder.path).samples}


async def answers() -> bool:
    """Say that the endpoint is alive."""
    return True


async def is_dead() -> bool:
    """Say that the endpoint is dead."""
    return False


async def test_every_sample_is_run_once_and_recorded(folder):
    """A second runner finds nothing owed; `forget` gets the thread of every sample."""
    executor, forgotten = FakeExecutor(), []

    async def forget(thread_id: str) -> None:
        forgotten.append(thread_id)

    await runner(folder, executor, forget=forget).work(samples(5))
    assert sorted(executor.ran) == ["0", "1", "2", "3", "4"]
    assert sorted(forgotten) == ["t0", "t1", "t2", "t3", "t4"]
    again = FakeExecutor()
    await runner(folder, again).work(samples(5))
    assert again.ran == []


@given(st.integers(1, 8), st.lists(st.integers(1, 12), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
async def test_samples_at_once_make_no_more_calls_than_there_are_slots(
    tmp_path_factory, max_calls, widths
):
    """A sample counts as many calls as it has parallel drafts; a wider one runs alone."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.open(recorded.header())
    calls, most = Counter(), 0

    class Counting(FakeExecutor):
        async def run(self, sample: Sample, on_event) -> dict:
            nonlocal most
            calls[sample.position] = max(sample.config.widths)
            most = max(most, calls.total() if len(calls) > 1 else 0)
            await asyncio.sleep(0)
            del calls[sample.position]
            return await super().run(sample, on_event)

    executor = Counting()
    specs = [f"a{index}=majority@widths={width}" for index, width in enumerate(widths)]
    await runner(folder, executor, max_calls).work(samples(12, *specs))
    folder.close()
    assert len(executor.ran) == 12
    assert most <= max_calls


async def test_a_failure_among_successes_is_recorded(folder):
    """On request it is run again."""
    await runner(folder, FakeExecutor(failing={"1"})).work(samples(4))
    assert reasons(folder) == {"0": "wrong", "1": "failed", "2": "wrong", "3": "wrong"}
    again = FakeExecutor()
    await runner(folder, again, retry_failed=True).work(samples(4))
    assert again.ran == ["1"]
    assert reasons(folder)["1"] == "wrong"


async def test_failures_at_the_end_are_the_endpoints_if_it_is_dead(folder):
    """None of them is recorded, since no arm is to blame."""
    executor = FakeExecutor(failing={"2", "3"})
    with pytest.raises(EndpointError, match="no luck with 3; the last 2 that failed are not rec"):
        await runner(folder, executor, at_once=1, alive=is_dead).work(samples(4))
    assert reasons(folder) == {"0": "wrong", "1": "wrong"}


async def test_failures_at_the_end_are_the_samples_if_it_lives(folder):
    """Otherwise a problem that always fails would be owed for ever."""
    await runner(folder, FakeExecutor(failing={"2", "3"}), 1, alive=answers).work(samples(4))
    assert Counter(reasons(folder).values()) == {"wrong": 2, "failed": 2}


async def test_one_failure_after_another_stops_the_run(folder):
    """This holds even if the endpoint still lists its models."""
    executor = FakeExecutor(failing={str(index) for index in range(40)})
    with pytest.raises(EndpointError, match=f"{MOST_FAILURES} samples failed one after another"):
        await runner(folder, executor, alive=answers).work(samples(40))
    assert len(executor.ran) <= MOST_FAILURES + 2
    assert reasons(folder) == {}


async def test_a_sample_that_is_elsewhere_is_looked_at_again(folder):
    """The runner waits until the sample is recorded there, or free."""
    executor = FakeExecutor(elsewhere=Counter({"1": 2}))
    await runner(folder, executor).work(samples(3))
    assert Counter(executor.ran) == {"0": 1, "1": 3, "2": 1}
    assert len(reasons(folder)) == 3


async def test_a_drain_begins_nothing_more(folder):
    """Later, another runner finishes the rest."""
    executor = FakeExecutor(drain_at=2)
    with pytest.raises(DrainedError):
        await runner(folder, executor).work(samples(9))
    assert len(executor.ran) == 2
    await runner(folder, FakeExecutor()).work(samples(9))
    assert len(reasons(folder)) == 9
