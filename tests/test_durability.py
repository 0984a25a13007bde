"""Killed at any moment, a run is resumed where it was: no finished call is made again."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.runtime import RunControl

from pdr_graph import build_graph, history, preset, resume, solve
from pdr_graph.errors import (
    ConfigChangedError,
    DrainedError,
    QuorumError,
    ThreadExistsError,
    UnknownThreadError,
)
from pdr_graph.llm.client import ModelClient, OnChunk, Reply, Sampling
from pdr_graph.llm.usage import Spent
from pdr_graph.run import Parts
from pdr_graph.state import ProblemInput
from tests.mock_endpoint import MockEndpoint

PROBLEM = "What is 6 x 7?"
CONFIG = preset("pdr", widths=(4, 2), kappa=256, max_tokens=256, solution_tokens=256, seed=7)
CALLS = 4 + 1 + 2 + 1 + 1


class Died(BaseException):
    """Stands for the process's death: nothing in the package may catch it."""


class Scripted(BaseChatModel):
    """Answers by prompt and seed alone."""

    model_name: str = "scripted"
    seed: int | None = None

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> ChatResult:
        prompt, seed = str(messages[0].content), int(kwargs["seed"])
        # Siblings finish at different times, so that a death finds some done and some not.
        await asyncio.sleep(seed % 5 * 0.004)
        text = f"Seed {seed} of {len(prompt)} says \\boxed{{{seed % 3}}}."
        usage = {"input_tokens": len(prompt), "output_tokens": 20, "total_tokens": len(prompt) + 20}
        message = AIMessage(text, usage_metadata=usage)
        return ChatResult(generations=[ChatGeneration(message=message)])


class Mortal(ModelClient):
    """Remembers the calls that it finished, and dies before a given one."""

    def __init__(self, die_before: int | None = None, **options: Any) -> None:
        super().__init__(Scripted(), **options)
        self.die_before = die_before
        self.started = 0
        self.finished: list[tuple[str, int]] = []

    async def ask(
        self,
        prompt: str,
        sampling: Sampling,
        spent: Spent,
        on_chunk: OnChunk | None = None,
    ) -> Reply:
        self.started += 1
        if self.started == self.die_before:
            raise Died
        reply = await super().ask(prompt, sampling, spent, on_chunk)
        self.finished.append((prompt, sampling.seed))
        return reply


def without_seconds(state: dict[str, Any]) -> dict[str, Any]:
    timeless = {**state, "ledger": [{**row, "seconds": 0} for row in state["ledger"]]}
    timeless["drafts"] = [{**draft, "seconds": 0} for draft in state["drafts"]]
    return timeless


@pytest.mark.parametrize("call", range(1, CALLS + 1))
async def test_dying_before_any_call_changes_nothing_but_time(call):
    """Die before call n, resume: the final state is that of a run that never died."""
    whole = Mortal()
    expected = await solve(
        PROBLEM, CONFIG, model=whole, checkpointer=InMemorySaver(), thread_id="t"
    )
    assert len(whole.finished) == CALLS

    saver = InMemorySaver()
    before = Mortal(call)
    with pytest.raises(Died):
        await solve(PROBLEM, CONFIG, model=before, checkpointer=saver, thread_id="t")
    after = Mortal()
    result = await resume("t", model=after, checkpointer=saver)

    assert without_seconds(result.state) == without_seconds(expected.state)
    repeated = Counter(before.finished) & Counter(after.finished)
    assert not repeated
    assert Counter(before.finished) + Counter(after.finished) == Counter(whole.finished)


class MortalSaver(InMemorySaver):
    """Dies instead of storing its n-th checkpoint; what its steps wrote is stored by then."""

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__()
        self.die_at = die_at
        self.asked = 0

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        self.asked += 1
        if self.asked == self.die_at:
            raise Died
        return await super().aput(*args, **kwargs)


CHECKPOINTS = 10
"""The input's, then each super-step's: the entry; plan, draft, distil, twice; refine, verify."""


@pytest.mark.parametrize("checkpoint", range(2, CHECKPOINTS + 1))
async def test_dying_between_a_step_and_its_checkpoint_changes_nothing_but_time(checkpoint):
    """What a step has written is not done again, though no checkpoint has it yet."""
    whole, reference = Mortal(), MortalSaver()
    expected = await solve(PROBLEM, CONFIG, model=whole, checkpointer=reference, thread_id="t")
    assert reference.asked == CHECKPOINTS
    saver, before, after = MortalSaver(checkpoint), Mortal(), Mortal()
    with pytest.raises(Died):
        await solve(PROBLEM, CONFIG, model=before, checkpointer=saver, thread_id="t")
    result = await resume("t", model=after, checkpointer=saver)
    assert without_seconds(result.state) == without_seconds(expected.state)
    assert Counter(before.finished) + Counter(after.finished) == Counter(whole.finished)


class InputOnly(MortalSaver):
    """Dies when it has stored a run's input, and nothing of what the first step wrote."""

    async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
        if self.die_at is None:
            await super().aput_writes(*args, **kwargs)


async def test_a_death_before_the_first_step_keeps_the_config():
    """Resumed by the same config, or by the name alone, it is that run; its history tells it."""
    for changes in (CONFIG.model_dump(), None):
        saver = InputOnly(die_at=2)
        with pytest.raises(Died):
            await solve(PROBLEM, CONFIG, model=Mortal(), checkpointer=saver, thread_id="t")
        saver.die_at = None
        past = await history("t", checkpointer=saver)
        assert (past.problem, past.config, past.rounds) == (PROBLEM, CONFIG, [])
        with pytest.raises(ConfigChangedError, match="another seed"):
            await resume("t", model=Mortal(), checkpointer=saver, changes={"seed": 8})
        after = Mortal()
        await resume("t", model=after, checkpointer=saver, changes=changes)
        assert len(after.finished) == CALLS


async def test_a_death_in_the_first_step_keeps_the_config():
    """The config is in the very first checkpoint, before any node has run."""

    class Mute:
        source = "estimate"

        async def count(self, text: str) -> int:
            raise Died

    saver = InMemorySaver()
    model = Mortal()
    with pytest.raises(Died):
        await solve(
            PROBLEM,
            CONFIG,
            model=Mortal(counter=Mute()),
            checkpointer=saver,
            thread_id="t",
        )
    result = await resume("t", model=model, checkpointer=saver)
    assert result.config == CONFIG
    assert len(model.finished) == CALLS


async def test_a_round_below_quorum_resumes_with_the_missing_drafts_alone(mock, connect):
    """Resume asks for the failed drafts again and keeps those that had come in."""
    saver = InMemorySaver()
    mock.configure(status=[{"match": {"call": n}, "status": 400} for n in (1, 2, 3)])
    with pytest.raises(QuorumError, match="1 of 4 drafts succeeded"):
        await solve(PROBLEM, CONFIG, model=connect(), checkpointer=saver, thread_id="t")
    assert mock.stats()["calls"] == 4
    mock.configure(status=[])
    result = await resume("t", model=connect(), checkpointer=saver)
    assert mock.stats()["calls"] == 4 + 3 + (CALLS - 4)
    row = result.to_json()["ledger"]["rows"][0]
    assert (row["round"], row["node"], row["calls"], row["failed"]) == (1, "drafter", 7, 3)


async def test_a_failed_final_call_is_asked_again_alone(mock, connect):
    """A call that the run cannot do without stops it; resume repeats just that call."""
    saver = InMemorySaver()
    mock.configure(status=[{"match": {"call": CALLS}, "status": 400}])
    with pytest.raises(Exception, match="HTTP 400"):
        await solve(PROBLEM, CONFIG, model=connect(), checkpointer=saver, thread_id="t")
    mock.configure(status=[])
    await resume("t", model=connect(), checkpointer=saver)
    assert mock.stats()["calls"] == CALLS + 1


async def test_a_drained_run_stops_at_the_next_super_step_and_resumes(mock, connect):
    """After a stop request the drafts in flight finish; resume goes on with the next step."""
    saver, control = InMemorySaver(), RunControl()

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "draft":
            control.request_drain("SIGTERM")

    parts = Parts(on_event=stop, control=control)
    with pytest.raises(DrainedError, match="pdr-graph resume t"):
        await solve(
            PROBLEM, CONFIG, model=connect(), checkpointer=saver, thread_id="t", parts=parts
        )
    assert mock.stats()["calls"] == 4
    await resume("t", model=connect(), checkpointer=saver)
    assert mock.stats()["calls"] == CALLS


async def test_resuming_a_finished_run_returns_it_without_a_call(mock, connect):
    """Resume is safe to repeat."""
    saver = InMemorySaver()
    done = await solve(PROBLEM, CONFIG, model=connect(), checkpointer=saver, thread_id="t")
    again = await resume("t", model=connect(), checkpointer=saver)
    assert (again.solution, mock.stats()["calls"]) == (done.solution, CALLS)


async def test_resume_refuses_another_config_or_model(connect):
    """A run goes on as it was started; the sentence names what differs."""
    saver = InMemorySaver()
    await solve(PROBLEM, CONFIG, model=connect(), checkpointer=saver, thread_id="t")
    other: dict[str, object] = {"kappa": 512, "widths": (2,)}
    with pytest.raises(ConfigChangedError, match="started with another widths, kappa"):
        await resume("t", model=connect(), checkpointer=saver, changes=other)
    with pytest.raises(ConfigChangedError, match="another model"):
        await resume("t", model=Mortal(), checkpointer=saver)
    same: dict[str, object] = {"kappa": CONFIG.kappa}
    await resume("t", model=connect(), checkpointer=saver, changes=same)


async def test_threads_are_told_apart(connect):
    """An unknown thread cannot be resumed, a used one cannot be started."""
    saver = InMemorySaver()
    with pytest.raises(UnknownThreadError, match="no run is recorded under thread 'x'"):
        await resume("x", model=connect(), checkpointer=saver)
    await solve(PROBLEM, CONFIG, model=connect(), checkpointer=saver, thread_id="t")
    with pytest.raises(ThreadExistsError, match="thread 't' already holds a run"):
        await solve(PROBLEM, CONFIG, model=connect(), checkpointer=saver, thread_id="t")


async def test_history_shows_finished_drafts_of_an_interrupted_round():
    """What a dead run had finished is readable before it is resumed."""
    saver = InMemorySaver()
    model = Mortal(4)
    with pytest.raises(Died):
        await solve(PROBLEM, CONFIG, model=model, checkpointer=saver, thread_id="t")
    view = await history("t", checkpointer=saver)
    assert view.next == ("drafter",)
    assert len(view.rounds[0].drafts) == len(model.finished)
    await resume("t", model=Mortal(), checkpointer=saver)
    view = await history("t", checkpointer=saver)
    assert [(len(each.drafts), len(each.workspaces)) for each in view.rounds] == [(4, 1), (2, 1)]
    assert view.solution is not None
    assert view.next == ()


async def test_a_subgraph_resumes_inside_its_parent(mock: MockEndpoint, connect):
    """Embedded in a larger graph, a dead round goes on inside it."""
    saver = InMemorySaver()

    def parent(model: Any) -> Any:
        builder = StateGraph(ProblemInput, context_schema=type(CONFIG))
        builder.add_node("reason", build_graph(model))
        builder.add_edge(START, "reason")
        return builder.compile(checkpointer=saver)

    run = {"configurable": {"thread_id": "t"}}
    before, after = Mortal(4), Mortal()
    entry = {"problem": PROBLEM, "config": CONFIG.model_dump(mode="json")}
    with pytest.raises(Died):
        await parent(before).ainvoke(entry, run, durability="sync")
    await parent(after).ainvoke(None, run)
    assert len(before.finished) + len(after.finished) == CALLS
