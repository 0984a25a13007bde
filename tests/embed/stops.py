"""Ways to stop a parent and to go on, and one body that tries a parent at every point.

A parent is stopped later each time until it ends by itself, so that every point is tried, and none
is missed when a run gets another step.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langgraph.types import Command, interrupt

from pdr_graph import Extensions, Parts, PDRConfig, resume
from pdr_graph.errors import DrainedError, PDRError
from pdr_graph.step import Step
from pdr_graph.types import Verdict
from tests.embed.trials import (
    FIRST,
    FIRST_CALLS,
    OTHER,
    OTHER_CALLS,
    Asked,
    Graph,
    Oracle,
    Parent,
    Saver,
    client_of,
)

RUN: dict[str, Any] = {"configurable": {"thread_id": "t"}}
"""Where most trials are."""
QUIET_TURNS = 40
"""Turns of the event loop after which a graph whose calls are held has nothing left to do."""


async def person(step: Step) -> Verdict:
    """Ask a person whether the solution is right."""
    said = interrupt("Is it right?")
    return Verdict(verifier="person", accepted=said == "yes", reason="a person said so")


ASKING = Extensions(verifiers={"person": person})


class KilledError(Exception):
    """What a mortal saver dies of."""


class MortalSaver(InMemorySaver):
    """Stores nothing from some write on, as if the process had been killed there."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_at: int | None = None
        self.at_death: Callable[[], object] = int
        self.num_writes = 0

    async def aput(self, *arguments: Any) -> Any:
        """Store a checkpoint."""
        self._live()
        return await super().aput(*arguments)

    async def aput_writes(self, *arguments: Any) -> None:
        """Store what a task wrote."""
        self._live()
        await super().aput_writes(*arguments)

    def _live(self) -> None:
        self.num_writes += 1
        if self.dies_at is not None and self.num_writes >= self.dies_at:
            self.at_death()
            raise KilledError


@dataclass
class Trial:
    """One parent on one thread."""

    parent: Parent
    saver: Saver = field(default_factory=MortalSaver)
    oracle: Oracle = field(default_factory=Oracle)
    first: PDRConfig = FIRST
    thread: str = "t"
    restarts: bool = True
    """Whether it goes on in a graph compiled anew, as another process does."""
    lost: int = 0
    """Calls that the stop may have finished in vain, since nothing could keep their reply."""
    unpaid: int = 0
    """Calls that no ledger can know of."""
    unsent: int = 0
    """Calls that were cut off on their way, so that a ledger counts what never arrived."""
    _made: tuple[PDRConfig, Graph] | None = None

    @property
    def run(self) -> dict[str, Any]:
        """The thread, as LangGraph takes it."""
        return {"configurable": {"thread_id": self.thread}}

    @property
    def names(self) -> tuple[str, ...]:
        """The questions that are asked first."""
        return self.parent.questions

    def graph(self, config: PDRConfig | None = None, *, same: bool = False) -> Graph:
        """Return the parent; `same` is the one of the last call, if it has the same config."""
        config = config or self.first
        if not same or self._made is None or self._made[0] != config:
            graph = self.parent.build(client_of(self.oracle), config, self.saver, ASKING)
            self._made = config, graph
        return self._made[1]

    async def ask(self, **options: Any) -> Any:
        """Ask the first questions."""
        return await self._invoke(self.names, self.first, options)

    async def ask_anew(self, **options: Any) -> Any:
        """Ask other questions on the same thread, with another config."""
        return await self._invoke(self.parent.new, OTHER, options)

    async def _invoke(
        self, names: tuple[str, ...], config: PDRConfig, options: dict[str, Any]
    ) -> Any:
        entry = self.parent.entry(names)
        if self.parent.by_context:
            options["context"] = config
            # A context is not stored, so a run that stops before its first step keeps the input's.
            entry["config"] = config.model_dump(mode="json")
        return await self.graph(config).ainvoke(entry, self.run, durability="sync", **options)

    async def go_on(self, entry: object = None, **options: Any) -> Any:
        """Continue with no input, or with an answer."""
        graph = self.graph(same=not self.restarts)
        return await graph.ainvoke(entry, self.run, durability="sync", **options)


# ------------------------------------------------------------------------------------------- stops

Stop = Callable[[Trial, int], Awaitable[bool]]
"""Stops a trial at a point, counted from 1; False where the run ended before it."""


async def cancelled_in_a_call(trial: Trial, at: int) -> bool:
    """Cancel while a call waits for its reply, and all before it have been answered."""
    trial.oracle.holds_from = at
    run = asyncio.create_task(trial.ask())
    arrived = asyncio.create_task(trial.oracle.arrived(at))
    await asyncio.wait({run, arrived}, return_when=asyncio.FIRST_COMPLETED)
    if not run.done():
        await _quiet(trial)
        run.cancel()
    arrived.cancel()
    return await _is_stopped(run)


REPLIES = [(call, turns) for call in (1, 3) for turns in range(0, 48, 7)]
"""Calls, and turns of the event loop after their reply: until a super-step later, in leaps."""


async def cancelled_after_a_reply(trial: Trial, at: int) -> bool:
    """Cancel some turns of the event loop after a draft or a distillation was answered."""
    if at > len(REPLIES):
        return False
    number, turns = REPLIES[at - 1]
    run = asyncio.create_task(trial.ask())
    loop = asyncio.get_running_loop()

    def later(left: int) -> None:
        if left:
            loop.call_soon(later, left - 1)
        else:
            run.cancel()

    trial.oracle.on_reply(lambda call: later(turns) if call.number == number else None)
    # The calls of one super-step may have been answered, and their node not yet have ended.
    trial.lost = trial.unsent = 2 * len(trial.names)
    return await _is_stopped(run)


async def refused(trial: Trial, at: int) -> bool:
    """Refuse every call from some number on: a quorum is missed, or a call of its own fails."""
    trial.oracle.refuses_from = at
    try:
        await trial.ask()
    except PDRError:
        await _quiet(trial)
        return True
    return False


async def drained(trial: Trial, at: int) -> bool:
    """Ask the run to stop at the next super-step while it makes a call."""
    control = RunControl()

    def answered(call: Asked) -> None:
        if call.number == at:
            control.request_drain()

    trial.oracle.on_reply(answered)
    try:
        await trial.ask(control=control)
    except (GraphDrained, DrainedError):
        await _quiet(trial)
        return True
    return False


async def killed(trial: Trial, at: int) -> bool:
    """Store nothing from some write on, each second one of the run, but always the input."""
    assert isinstance(trial.saver, MortalSaver)
    trial.saver.dies_at = 2 * at
    run = asyncio.create_task(trial.ask())

    def die() -> None:
        if trial.oracle.holds_from is None:
            trial.oracle.holds_from = trial.oracle.num_calls + 1
            run.cancel()

    trial.saver.at_death = die
    await asyncio.gather(run, return_exceptions=True)
    await _quiet(trial)
    trial.saver.dies_at = None
    # What was answered since the last write that was stored is lost, and so is its price: at most
    # the drafts of a round, and a call that was on its way.
    trial.lost = trial.unpaid = 3 * len(trial.names)
    return trial.saver.num_writes >= 2 * at


async def asking(trial: Trial, at: int) -> bool:
    """Let the verifier ask a person."""
    trial.first = FIRST.model_copy(update={"verifier": "person"})
    return at == 1 and "__interrupt__" in await trial.ask()


def breakpoint(when: str) -> Stop:
    """Return a stop that halts at every breakpoint, and goes on from all but the last."""

    async def stop(trial: Trial, at: int) -> bool:
        await trial.ask(**{when: "*"})
        graph = trial.graph(same=True)
        for _ in range(at - 1):
            await graph.ainvoke(None, trial.run, durability="sync", **{when: "*"})
        return bool((await graph.aget_state(trial.run)).next)

    return stop


async def _is_stopped(run: asyncio.Task[Any]) -> bool:
    try:
        await run
    except asyncio.CancelledError:
        return True
    return False


async def _quiet(trial: Trial) -> None:
    """Wait until nothing is left to do but to wait for held calls."""
    if not isinstance(trial.saver, InMemorySaver):
        await asyncio.sleep(0.05)  # a store in another process tells nobody that it is done
    for _ in range(QUIET_TURNS):
        await asyncio.sleep(0)


STOPS: dict[str, Stop] = {
    "cancel": cancelled_in_a_call,
    "cancel-late": cancelled_after_a_reply,
    "refuse": refused,
    "drain": drained,
    "kill": killed,
    "ask": asking,
    "before": breakpoint("interrupt_before"),
    "after": breakpoint("interrupt_after"),
}

# -------------------------------------------------------------------------------------------- ways


async def with_none(trial: Trial) -> None:
    """The graph run again with no input continues; what waits for a person goes on waiting."""
    state = await trial.go_on()
    while asked := state.get("__interrupt__"):
        before = trial.oracle.num_calls
        state = await trial.go_on(Command(resume={asked[0].id: "yes"}))
        assert trial.oracle.num_calls == before
    check(trial, state, trial.names)
    # A round may go on without a draft that was refused.
    finished = sum(each.finished for each in trial.oracle.asked)
    assert finished <= len(trial.names) * FIRST_CALLS + trial.lost


async def with_resume(trial: Trial) -> None:
    """`resume` continues a run that is a graph of its own, and takes a person's answer."""
    waits = bool((await trial.graph(same=True).aget_state(trial.run)).interrupts)
    result = await resume(
        trial.thread,
        model=client_of(trial.oracle),
        checkpointer=trial.saver,
        answer="yes" if waits else None,
        parts=Parts(extensions=ASKING),
    )
    check(trial, dict(result.state), trial.names)
    assert result.config.widths == FIRST.widths


async def with_a_new_question(trial: Trial) -> None:
    """New input is a new run: its own question, its own config, and what the old one cost."""
    before = trial.oracle.num_calls
    check(trial, await trial.ask_anew(), trial.parent.new)
    assert trial.oracle.num_calls - before == len(trial.parent.new) * OTHER_CALLS


async def with_a_new_question_that_halts(trial: Trial) -> None:
    """New input that comes to a breakpoint before its first step is a new run all the same."""
    before = trial.oracle.num_calls
    await trial.ask_anew(interrupt_before="*")
    assert trial.oracle.num_calls == before
    state = await trial.graph(OTHER).ainvoke(None, trial.run, durability="sync")
    check(trial, state, trial.parent.new)
    assert trial.oracle.num_calls - before == len(trial.parent.new) * OTHER_CALLS


def check(trial: Trial, state: dict[str, Any], names: tuple[str, ...]) -> None:
    """Hold a finished run to what holds for all."""
    assert trial.parent.answers(state, names) == {name: name for name in names}
    assert trial.oracle.num_repeated() <= trial.lost
    assert trial.oracle.num_mixed() == 0 or not trial.parent.is_ours  # a conversation has it all
    charged = sum(row["calls"] for row in state["ledger"])
    served = trial.oracle.num_calls
    assert served - trial.unpaid <= charged <= served + trial.unsent


WAYS: dict[str, Callable[[Trial], Awaitable[None]]] = {
    "none": with_none,
    "resume": with_resume,
    "new": with_a_new_question,
    "new-halted": with_a_new_question_that_halts,
}


async def at_every_point(
    parent: Parent, stop: str, way: str, savers: Callable[[], Saver] = MortalSaver
) -> None:
    """Stop a parent at one point after the other, and go on from each."""
    at = 0
    while True:
        at += 1
        trial = Trial(parent, savers(), thread=f"t-{at}", restarts=at % 2 == 0)
        if not await STOPS[stop](trial, at):
            break
        trial.oracle.behave()
        try:
            await WAYS[way](trial)
        except BaseException as error:
            error.add_note(f"stopped by {stop} at point {at}, continued by {way}")
            raise
    assert at > 1
