"""One thread, whatever is done to it: asked, stopped, continued, edited, forked, asked anew.

Hypothesis makes up the histories. A run that ends has the answer to its own question, by its own
config; it made no answered call again; and its ledger is what the model counted since the thread's
last run ended, unless the thread was edited or forked meanwhile, which leaves work behind.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.graph import START
from langgraph.runtime import RunControl

from pdr_graph import Parts, PDRConfig, build_graph, resume
from pdr_graph.errors import PDRError
from tests.embed.stops import QUIET_TURNS, RUN, KilledError, MortalSaver
from tests.embed.trials import (
    ANSWERS,
    FIRST,
    FIRST_CALLS,
    OTHER,
    Graph,
    Oracle,
    answer_in,
    client_of,
    question,
)

CONFIGS = {"first": FIRST, "other": OTHER}
calls = st.integers(1, FIRST_CALLS)
stops = st.one_of(
    st.just(("never", 0, 0)),
    st.tuples(
        st.sampled_from(["cancel", "refuse", "drain"]), st.integers(1, FIRST_CALLS), st.just(0)
    ),
    st.tuples(st.just("cancel late"), st.integers(1, FIRST_CALLS), st.integers(0, 50)),
    st.just(("breakpoint", 0, 0)),
)
"""How a call of the graph is stopped, at which of its own calls, and how long after the reply."""


class ThreadMachine(RuleBasedStateMachine):
    """A thread, and what must be true of it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.saver = InMemorySaver()
        self.oracle = Oracle()
        self.seed = 0
        self.name = ""
        self.config = FIRST
        self.stopped = False
        """Whether there is a run to continue."""
        self.counted = 0
        """Calls that ledgers have told of."""
        self.lost = 0
        """Calls that were answered, and cut off before their reply could be kept."""
        self.exact = True
        """False where an edit or a fork has left work behind that no ledger need tell of."""

    def teardown(self) -> None:
        """Close the event loop."""
        self.runner.close()

    @rule(name=st.sampled_from(sorted(ANSWERS)), base=st.sampled_from(sorted(CONFIGS)), stop=stops)
    def ask(self, name: str, base: str, stop: tuple[str, int, int]) -> None:
        """Ask a question, whatever the thread was about."""
        # A seed of its own tells the calls of one run from those of another.
        self.seed += 1
        self.name = name
        self.config = CONFIGS[base].model_copy(update={"seed": self.seed})
        entry = {"problem": question(name), "config": self.config.model_dump(mode="json")}
        self._call(entry, RUN, stop)

    @precondition(lambda self: self.stopped)
    @rule(stop=stops)
    def go_on(self, stop: tuple[str, int, int]) -> None:
        """Continue with no input."""
        self._call(None, RUN, stop)

    @precondition(lambda self: self.stopped)
    @rule(stop=stops)
    def resume(self, stop: tuple[str, int, int]) -> None:
        """Continue by `resume`."""

        async def call(**options: Any) -> dict[str, Any]:
            result = await resume(
                "t",
                model=client_of(self.oracle),
                checkpointer=self.saver,
                parts=Parts(control=options.get("control")),
            )
            return dict(result.state)

        self._stoppable(call, stop)

    @precondition(lambda self: self.stopped)
    @rule()
    def edit(self) -> None:
        """Write a note into the state, as a person in Studio does."""
        graph = self._graph()
        snapshot = self.runner.run(graph.aget_state(RUN))
        if snapshot.next and "notes" in snapshot.values:
            self.runner.run(graph.aupdate_state(RUN, {"notes": ["edited"]}))
            self.exact = False

    @precondition(lambda self: self.name)
    @rule(data=st.data(), stop=stops)
    def fork(self, data: st.DataObject, stop: tuple[str, int, int]) -> None:
        """Go on from any earlier step."""

        async def steps() -> list[Any]:
            return [each async for each in self._graph().aget_state_history(RUN)]

        past = [
            each
            for each in self.runner.run(steps())
            # An input that waits is not in the values yet.
            if "config" in each.values and each.next and each.next != (START,)
        ]
        if not past:
            return
        chosen = data.draw(st.sampled_from(past))
        self.name = next(name for name in ANSWERS if name in chosen.values["problem"])
        self.config = PDRConfig.model_validate(chosen.values["config"])
        self.exact = False
        self._call(None, chosen.config, stop)

    def _graph(self) -> Graph:
        return build_graph(client_of(self.oracle), checkpointer=self.saver)

    def _call(
        self, entry: dict[str, Any] | None, run: dict[str, Any], stop: tuple[str, int, int]
    ) -> None:
        async def call(**options: Any) -> dict[str, Any]:
            state: dict[str, Any] = await self._graph().ainvoke(
                entry, run, durability="sync", **options
            )
            return state

        self._stoppable(call, stop)

    def _stoppable(
        self, call: Callable[..., Awaitable[dict[str, Any]]], stop: tuple[str, int, int]
    ) -> None:
        told = self.runner.run(self._stop(call, *stop))
        self.oracle.behave()
        snapshot = self.runner.run(self._graph().aget_state(RUN))
        ended = not snapshot.next and snapshot.values.get("phase") == "done"
        self.stopped = not (ended and told)
        if ended and told:
            self._ended(snapshot.values)
        elif ended:
            # Cancelled with its last step done: a ledger to come may take it for ended or not.
            self.exact = False

    async def _stop(
        self, call: Callable[..., Awaitable[dict[str, Any]]], how: str, at: int, turns: int
    ) -> bool:
        """Call the graph, and tell whether it ended without an error."""
        number, control, oracle = self.oracle.num_calls + at, RunControl(), self.oracle
        options = {"interrupt_before": "*"} if how == "breakpoint" else {}
        run = asyncio.ensure_future(call(control=control, **options))
        if how == "cancel":
            oracle.holds_from = number
            arrived = asyncio.ensure_future(oracle.arrived(number))
            await asyncio.wait({run, arrived}, return_when=asyncio.FIRST_COMPLETED)
            arrived.cancel()
            for _ in range(QUIET_TURNS):
                await asyncio.sleep(0)
            run.cancel()
        elif how == "cancel late":
            self.lost += 2
            oracle.on_reply(lambda each: _later(run, turns) if each.number == number else None)
        elif how == "drain":
            oracle.on_reply(lambda each: control.request_drain() if each.number == number else None)
        elif how == "refuse":
            oracle.refuses_from = number
        try:
            await run
        except (asyncio.CancelledError, GraphDrained, PDRError):
            return False
        return True

    def _ended(self, state: dict[str, Any]) -> None:
        assert answer_in(state["solution"]["text"]) == self.name
        assert state["config"]["seed"] == self.config.seed
        assert tuple(state["config"]["widths"]) == self.config.widths
        assert self.oracle.num_mixed() == 0
        charged = sum(row["calls"] for row in state["ledger"])
        made = self.oracle.num_calls - self.counted
        if self.exact:
            assert made <= charged <= made + self.lost
            assert self.oracle.num_repeated() <= self.lost
        self.counted, self.exact = self.oracle.num_calls, True
        self.oracle.forget()
        self.lost = 0


def _later(run: "asyncio.Future[Any]", turns: int) -> None:
    if turns:
        asyncio.get_running_loop().call_soon(_later, run, turns - 1)
    else:
        run.cancel()


TestThread = ThreadMachine.TestCase
TestThread.settings = settings(
    max_examples=15,
    stateful_step_count=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller example takes minutes to find
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_a_fork_at_a_new_question_opens_its_run():
    """Of a thread whose run before had stopped: nothing of that run is read."""
    machine = ThreadMachine()
    machine.ask(name="BETA", base="first", stop=("refuse", 5, 0))
    machine.ask(name="ALPHA", base="first", stop=("never", 0, 0))

    async def steps() -> list[Any]:
        return [each async for each in machine._graph().aget_state_history(RUN)]

    past = machine.runner.run(steps())
    (taken,) = [
        each
        for each in past
        if each.next == ("plan",)
        and each.values["problem"] != question("BETA")
        and each.values["run"] == past[-3].values["run"]
    ]
    machine.exact = False
    machine._call(None, taken.config, ("never", 0, 0))
    assert not machine.stopped
    machine.teardown()


class LosesTheLast(InMemorySaver):
    """Stores what a run's last step wrote, and not the checkpoint that comes after it."""

    async def aput(self, config: Any, checkpoint: Any, *rest: Any) -> Any:
        """Store a checkpoint."""
        if checkpoint["channel_values"].get("phase") == "done":
            raise KilledError
        return await super().aput(config, checkpoint, *rest)


async def without_its_last(oracle: Oracle, saver: InMemorySaver) -> None:
    """Store a run whose last step is kept and whose last checkpoint is not."""
    kept = LosesTheLast()
    entry = {"problem": question("ALPHA"), "config": FIRST.model_dump(mode="json")}
    with pytest.raises(KilledError):
        await build_graph(client_of(oracle), checkpointer=kept).ainvoke(entry, RUN)
    saver.storage, saver.writes, saver.blobs = kept.storage, kept.writes, kept.blobs


@pytest.mark.parametrize("halted", [False, True], ids=["at once", "after a breakpoint"])
async def test_a_run_that_resume_took_for_ended_is_charged_once(halted):
    """Its last checkpoint is missing; a new question on its thread costs its own calls alone."""
    oracle, saver = Oracle(), InMemorySaver()
    await without_its_last(oracle, saver)
    ended = await resume("t", model=client_of(oracle), checkpointer=saver)
    assert sum(row["calls"] for row in ended.ledger.rows) == oracle.num_calls == FIRST_CALLS

    graph = build_graph(client_of(oracle), checkpointer=saver)
    entry = {"problem": question("BETA"), "config": OTHER.model_dump(mode="json")}
    state = await graph.ainvoke(entry, RUN, interrupt_before="*" if halted else None)
    if halted:
        state = await graph.ainvoke(None, RUN)
    assert answer_in(state["solution"]["text"]) == "BETA"
    assert sum(row["calls"] for row in state["ledger"]) == oracle.num_calls - FIRST_CALLS


async def test_a_store_that_takes_nothing_more_withholds_no_result():
    """The run is read as it ended; that it was told is not kept."""
    oracle, full = Oracle(), MortalSaver()
    await without_its_last(oracle, full)
    full.dies_at = 1
    ended = await resume("t", model=client_of(oracle), checkpointer=full)
    assert answer_in(ended.solution) == "ALPHA"
