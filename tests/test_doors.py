"""All doors of Python: the same input is the same run, or the same sentence, at each of them."""

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph

from pdr_graph import (
    Extensions,
    ModelClient,
    Parts,
    RunStream,
    as_tool,
    build_graph,
    history,
    pdr_node,
    preset,
    resume,
    resume_sync,
    solve,
    solve_sync,
    stream,
)
from pdr_graph.connect import open_client
from pdr_graph.distill import draft_entry
from pdr_graph.errors import ConfigError, DrainedError, StepError, StepLostError, retry_on
from pdr_graph.types import Solution, Verdict
from tests.fakes import NO_WAIT, ScriptedChat

SMALL = {"widths": (2,), "max_tokens": 200, "solution_tokens": 64, "kappa": 64, "seed": 7}
PRESET = "long_cot"


def scripted(reply="The answer is \\boxed{4}.") -> ModelClient:
    return ModelClient(ScriptedChat(replies=[reply]), retry=NO_WAIT)


async def by_solve(config=None, **given):
    await solve("What is 2 + 2?", config, **given)


async def by_resume(config=None, **given):
    saver = InMemorySaver()
    await solve("What is 2 + 2?", PRESET, model=scripted(), checkpointer=saver, thread_id="t")
    await resume("t", config, checkpointer=saver, **given)


async def by_graph(config=None, **given):
    build_graph(config=config, **given)


async def by_old_name(config=None, **given):
    build_graph(default=config, **given)


async def by_node(config=None, **given):
    pdr_node(config, **given)


async def by_tool(config=None, **given):
    as_tool(config, **given)


async def by_solve_sync(config=None, **given):
    solve_sync("What is 2 + 2?", config, **given)


async def by_stream(config=None, **given):
    list(stream("What is 2 + 2?", config, **given))


DOORS = [
    by_solve,
    by_resume,
    by_graph,
    by_old_name,
    by_node,
    by_tool,
    by_solve_sync,
    by_stream,
]
BAD = {
    "preset": ({"config": "pdrr"}, r"^unknown preset 'pdrr'; perhaps 'pdr'; known: long_cot, "),
    "config": ({"config": 5}, r"^config must be a PDRConfig, .* a preset's name, or a dict"),
    "field": ({"config": {"width": 3}}, r"^unknown setting 'width'; perhaps 'widths'; "),
    "part": ({"config": {"distiller": "absent"}}, r"^unknown distiller 'absent'; known: summary"),
    "model": (
        {"model": "Qwen/Qwen3-8B"},
        r"^model 'Qwen/Qwen3-8B' is a name.*open_client.*init_ch",
    ),
    "address": ({"model": "http://127.0.0.1/v1"}, r"^model 'http.*' is a name.*open_client"),
    "provider": ({"model": "nobody:x"}, r"^model 'nobody:x' cannot be opened: .*open_client"),
    "nothing": ({"model": None}, r"^model must be a LangChain chat model .*, not None; open one"),
    "closed": (
        {"model": open_client()},
        r"^model must be .* `async with open_client\(\) as model`",
    ),
    "models": ({"models": ["large"]}, r"^models must be a dict of roles and models"),
    "role": ({"models": {"refiner": 5}}, r"^the model of role 'refiner' must be a LangChain"),
    "parts": ({"parts": {"extensions": None}}, r"^parts must be Parts\(extensions=…"),
    "steps": ({"extensions": {"mine": len}}, r"^extensions must be Extensions\(distillers=…"),
    "twice": (
        {"extensions": Extensions(verifiers={"a": len}), "parts": Parts(extensions=Extensions())},
        r"^extensions is given by itself and in parts",
    ),
    "list": ({"extensions": Extensions(finishes=[len])}, r"^finishes must be a dict of functions"),
    "step": (
        {"extensions": Extensions(distillers={"mine": "text"})},
        r"^distiller 'mine' must be a function of a Step, not 'text'$",
    ),
    "judge": ({"judge": "judge.json"}, r"^judge must be a judge of drafts, .*not 'judge.json'$"),
    "prompts": ({"parts": Parts(prompts="folder")}, r"^prompts must be Prompts, .*not 'folder'$"),
    "trace": ({"parts": Parts(trace="file")}, r"^trace must have a method record, "),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("door", DOORS)
async def test_bad_input_is_refused_in_the_same_words(door, what):
    """By one sentence that names the thing, the value and the remedy."""
    given, sentence = BAD[what]
    with pytest.raises(ConfigError, match=sentence) as raised:
        await door(**{"model": scripted(), **given})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("config", [PRESET, preset(PRESET), {"preset": PRESET}, None])
@pytest.mark.parametrize("door", DOORS)
async def test_a_config_has_three_forms(door, config):
    """An object, the name of a preset, or a dict of fields; None leaves it to the door."""
    await door(config, model=scripted())


@pytest.mark.parametrize("door", DOORS)
async def test_parts_are_given_whole_or_one_by_one(door):
    """`parts` and `extensions` are known at each door."""
    own = Extensions(verifiers={"mine": lambda step: True})
    given = {"parts": Parts(extensions=own)}, {"extensions": own}, {"parts": Parts()}
    for each in given:
        await door(model=scripted(), **each)


@pytest.mark.parametrize("door", [by_graph, by_node, by_tool])
async def test_what_a_graph_around_the_run_does_is_not_lost(door):
    """A receiver of events, which nobody would call, is refused."""
    with pytest.raises(ConfigError, match=r"on_event .* the stream of the graph"):
        await door(model=scripted(), parts=Parts(on_event=print))


@pytest.mark.parametrize("problem", [None, 5, ["What is 2 + 2?"], "", "  "])
async def test_a_problem_is_a_text(problem):
    """At each door that takes it."""
    words = r"^the problem (must be a text, not|is empty)"
    with pytest.raises(ConfigError, match=words):
        await solve(problem, model=scripted())
    with pytest.raises(ConfigError, match=words):
        solve_sync(problem, model=scripted())
    with pytest.raises(ConfigError, match=words):
        stream(problem, model=scripted())
    with pytest.raises(ConfigError, match=words):
        await build_graph(scripted()).ainvoke({"problem": problem})


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((5,), r"^model must be a LangChain chat model, not 5$"),
        ((ScriptedChat(), len), r"^counter must have a method count, as EstimateCounter\(\) has,"),
    ],
)
def test_a_client_is_made_of_a_model_and_a_counter(parts, sentence):
    """What is neither is refused at once, and not in the middle of a run."""
    with pytest.raises(ConfigError, match=sentence):
        ModelClient(parts[0], counter=parts[1] if len(parts) > 1 else None)


class LosingTrace:
    """A trace that cannot keep anything."""

    async def record(self, record):
        raise KeyError("kept")


async def test_an_error_of_the_users_own_code_passes_and_is_named():
    """So it can be caught by its type, and its traceback says whose it is."""

    def told(event):
        raise KeyError(event["event"])

    parts = {"on_event": Parts(on_event=told), "record of the trace": Parts(trace=LosingTrace())}
    for whose, given in parts.items():
        with pytest.raises(KeyError) as raised:
            await solve("What is 2 + 2?", PRESET, model=scripted(), parts=given)
        assert raised.value.__notes__[0] == f"raised by {whose}"
    for name in ("input", "output"):
        builder = StateGraph(MessagesState)
        builder.add_node("n", pdr_node(PRESET, model=scripted(), **{name: lambda given: {}["x"]}))
        builder.add_edge(START, "n")
        with pytest.raises(KeyError) as raised:
            await builder.compile().ainvoke({"messages": [("user", "2 + 2?")]})
        assert raised.value.__notes__[0] == f"raised by {name} of pdr_node"


async def test_a_checkpointer_is_open():
    """An address is none."""
    with pytest.raises(ConfigError, match=r"^checkpointer must be an open .*not 'redis://x'$"):
        await solve("x", PRESET, model=scripted(), checkpointer="redis://x")
    with pytest.raises(ConfigError, match=r"^checkpointer must be an open "):
        await resume("x", model=scripted(), checkpointer="redis://x")
    with pytest.raises(ConfigError, match=r"^checkpointer must be an open "):
        build_graph(scripted(), checkpointer="redis://x")
    assert build_graph(scripted(), checkpointer=True).checkpointer is True  # LangGraph's own word


async def test_a_model_by_its_name(monkeypatch):
    """What langchain opens is asked."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    graph = build_graph("openai:gpt-none", models={"refiner": "openai:gpt-large"})
    assert graph.models.names["drafter"] == "gpt-none"
    assert graph.models.names["refiner"] == "gpt-large"


async def test_a_resumed_run_is_compared_with_the_config_that_is_given():
    """What the run was started with goes on; anything else is refused by name."""
    saver = InMemorySaver()
    await solve("x", preset("pdr", **SMALL), model=scripted(), checkpointer=saver, thread_id="t")
    again = {"model": scripted(), "checkpointer": saver}
    assert (await resume("t", {"preset": "pdr", **SMALL}, **again)).answer == "4"
    with pytest.raises(ConfigError, match=r"another .*finish"):
        await resume("t", "majority", **again)


# ------------------------------------------------------------------------------- own steps


def steps(kind, function) -> dict:
    registry = {"distiller": "distillers", "finish": "finishes", "verifier": "verifiers"}[kind]
    config = preset("pdr", **{**SMALL, kind: "mine"})
    return {"config": config, "extensions": Extensions(**{registry: {"mine": function}})}


def forms(function):
    """Return a function as what it is, as a coroutine function, and as an object of each kind."""

    async def coroutine(step):
        return function(step)

    class Called:
        def __call__(self, step):
            return function(step)

    class Awaited:
        async def __call__(self, step):
            return function(step)

    return {
        "plain": function,
        "coroutine": coroutine,
        "lambda": lambda step: coroutine(step),
        "object": Called(),
        "awaited": Awaited(),
    }


DISTILLED = {
    "text": (lambda step: "the gist", "the gist"),
    "texts": (lambda step: ["one", "two"], "one\n\ntwo"),
    "entries": (lambda step: [draft_entry(step.drafts[1])], "The answer is \\boxed{4}."),
    "mixed": (
        lambda step: ("one", draft_entry(step.drafts[0])),
        "one\n\nThe answer is \\boxed{4}.",
    ),
    "lists": (lambda step: [["one", "two"]], "one\n\ntwo"),
    "nothing": (lambda step: [[]], ""),
}
FINISHED = {
    "text": (lambda step: "It is \\boxed{7}.", "7"),
    "short": (lambda step: {"text": "It is \\boxed{7}."}, "7"),
    "answer": (lambda step: {"text": "It is 7.", "answer": "seven"}, "seven"),
    "whole": (lambda step: Solution(text="x", answer=None, truncated=False, finish="mine"), None),
}
JUDGED = {
    "true": (lambda step: True, Verdict(verifier="mine", accepted=True, reason="")),
    "false": (lambda step: False, Verdict(verifier="mine", accepted=False, reason="")),
    "short": (
        lambda step: {"accepted": False, "reason": "no"},
        Verdict(verifier="mine", accepted=False, reason="no"),
    ),
    "undecided": (
        lambda step: Verdict(verifier="unit", accepted=None, reason="?"),
        Verdict(verifier="unit", accepted=None, reason="?"),
    ),
}


@pytest.mark.parametrize("what", DISTILLED)
async def test_a_distiller_returns_what_people_guess(what):
    """A text, a list of pieces, or a list of such lists."""
    distil, expected = DISTILLED[what]
    for function in forms(distil).values():
        given = steps("distiller", function)
        result = await solve("What is 2 + 2?", model=scripted(), **given)
        texts = [each["text"] for each in result.state["workspaces"]]
        assert texts == [expected]


@pytest.mark.parametrize("what", FINISHED)
async def test_a_finish_returns_what_people_guess(what):
    """A solution, or its text; the answer is read off the text."""
    finish, answer = FINISHED[what]
    for function in forms(finish).values():
        result = await solve("What is 2 + 2?", model=scripted(), **steps("finish", function))
        assert result.answer == answer
        assert result.state["solution"]["finish"] == "mine"


@pytest.mark.parametrize("what", JUDGED)
async def test_a_verifier_returns_what_people_guess(what):
    """A verdict, or whether it accepts."""
    verify, verdict = JUDGED[what]
    for function in forms(verify).values():
        result = await solve("What is 2 + 2?", model=scripted(), **steps("verifier", function))
        assert result.verdict == verdict


async def test_a_rejection_without_a_reason_grants_a_round():
    """The round reads the rejected solution."""
    model = Slow(replies=["It is \\boxed{4}."], num_at_once=9)
    given = steps("verifier", lambda step: False)
    given["config"] = given["config"].model_copy(update={"max_extra_rounds": 1})
    result = await solve("What is 2 + 2?", model=model, **given)
    assert result.verdict["accepted"] is False
    assert sum("A solution that was rejected:" in prompt for prompt in model.prompts) == 2


WRONG = {
    "distiller": [None, 5, {"text": "x"}, [5], [["x"], "y"], b"x"],
    "finish": [None, 5, True, {}, {"answer": "4"}, {"text": 5}, {"text": "x", "answer": 4}],
    "verifier": [None, "yes", 1, {}, {"accepted": "yes"}, {"accepted": True, "reason": 5}],
}


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in WRONG.items() for value in values]
)
async def test_a_wrong_return_is_named_with_what_was_expected(kind, value):
    """The kind, the name, the value, and the types that are taken."""
    with pytest.raises(StepError, match=rf"^{kind} 'mine' returned .*; expected ") as raised:
        await solve("What is 2 + 2?", model=scripted(), **steps(kind, lambda step: value))
    assert (raised.value.kind, raised.value.name) == (kind, "mine")


@pytest.mark.parametrize("kind", WRONG)
async def test_a_step_that_raises_is_named(kind):
    """With the error, which is the cause, and the line where it was raised."""

    def missing(step):
        return {}["solution"]

    for function in forms(missing).values():
        words = rf"^{kind} 'mine' raised KeyError: 'solution' \(.*test_doors.py, line \d+\)"
        with pytest.raises(StepError, match=words) as raised:
            await solve("What is 2 + 2?", model=scripted(), **steps(kind, function))
        assert isinstance(raised.value.__cause__, KeyError)
        assert not retry_on(raised.value)


async def test_a_step_that_runs_out_of_items_is_named():
    """No future can hold a StopIteration."""
    given = steps("finish", lambda step: next(iter(())))
    with pytest.raises(StepError, match=r"^finish 'mine' raised RuntimeError: StopIteration"):
        await solve("What is 2 + 2?", model=scripted(), **given)


async def test_what_may_pass_is_told_from_what_will_not():
    """A lost connection in a step is worth another try."""

    def away(step):
        raise ConnectionError("away")

    with pytest.raises(StepLostError, match="raised ConnectionError: away") as raised:
        await solve("What is 2 + 2?", model=scripted(), **steps("verifier", away))
    assert retry_on(raised.value)


async def test_a_plain_step_holds_no_loop_up():
    """It runs in a thread; the loop goes on meanwhile."""
    ticks = []

    async def tick():
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    before = []

    def slow(step):
        before.append(len(ticks))
        time.sleep(0.5)
        before.append(len(ticks))
        return True

    await solve("What is 2 + 2?", model=scripted(), **steps("verifier", slow))
    ticking.cancel()
    assert before[1] - before[0] > 5


# ---------------------------------------------------------------------------- without asyncio


def test_solve_sync_works_without_a_loop(mock, connect_sync):
    """Twice with one client."""
    model = connect_sync()
    for _ in range(2):
        result = solve_sync("What is 17 + 25?", preset("pdr", **SMALL), model=model)
        assert result.solution
    assert mock.stats()["calls"] == 2 * 4


@pytest.fixture
def connect_sync(mock):
    """Makes a model of the mock endpoint, without a loop."""
    from pdr_graph import ChatVLLM

    return lambda: ChatVLLM(base_url=mock.url, model="mock-model")


def test_solve_sync_works_in_a_running_loop(mock, connect_sync):
    """As in a cell of Jupyter: the loop of the calling thread runs, and is left as it was."""

    async def cell():
        loop = asyncio.get_running_loop()
        model = connect_sync()
        result = solve_sync("What is 17 + 25?", preset("pdr", **SMALL), model=model)
        events = list(stream("What is 17 + 25?", preset("pdr", **SMALL), model=model))
        assert asyncio.get_running_loop() is loop
        after = await solve("What is 17 + 25?", preset("pdr", **SMALL), model=model)
        await model.aclose()
        return result, events, after

    result, events, after = asyncio.run(cell())
    assert result.answer == after.answer
    assert events[-1]["event"] == "verdict"


def test_the_stream_has_the_events_and_the_result():
    """Those of `on_event`, in order; what a step writes itself goes to `on_event` alone."""
    from langgraph.config import get_stream_writer

    async def shout(step):
        get_stream_writer()({"own": 1})
        return True

    heard = []
    given = steps("verifier", shout)
    own = Parts(extensions=given.pop("extensions"), on_event=heard.append)
    run = stream("What is 2 + 2?", model=scripted(), parts=own, stream_answer=True, **given)
    assert isinstance(run, RunStream)
    events = list(run)
    assert events == [each for each in heard if "event" in each]
    assert {"own": 1} in heard
    names = Counter(each["event"] for each in events)
    assert (names["draft"], names["workspace"], names["verdict"]) == (2, 1, 1)
    assert names["chunk"] >= 1
    assert run.result.answer == "4"
    assert run.result.thread_id == run.thread_id
    assert list(run) == []


def test_the_result_waits_for_a_run_that_nobody_reads():
    """Without a loop over the events."""
    assert stream("What is 2 + 2?", PRESET, model=scripted()).result.answer == "4"


def test_an_error_of_the_run_is_raised_by_the_iterator():
    """And again by its result."""
    run = stream("What is 2 + 2?", model=scripted(), **steps("verifier", lambda step: 1))
    with pytest.raises(StepError, match="verifier 'mine' returned"):
        list(run)
    with pytest.raises(StepError, match="verifier 'mine' returned"):
        _ = run.result
    with pytest.raises(StepError, match="verifier 'mine' returned"):
        solve_sync("What is 2 + 2?", model=scripted(), **steps("verifier", lambda step: 1))


class Slow(ScriptedChat):
    """Answers the first calls at once, and those that follow after a minute."""

    num_at_once: int = 2

    async def _agenerate(self, *args, **kwargs):
        if len(self.prompts) >= self.num_at_once:
            await asyncio.sleep(60)
        return self._generate(*args, **kwargs)


def slow_run(saver, thread_id):
    """Begin a run whose two drafts come at once and whose refinement takes a minute."""
    model = ModelClient(Slow(replies=[AIMessage("It is \\boxed{4}.")]), retry=NO_WAIT)
    config = preset("pdr", distiller="none", **SMALL)
    return stream("x", config, model=model, checkpointer=saver, thread_id=thread_id)


def num_threads(thread_id) -> int:
    gc.collect()
    return sum(thread.name == f"pdr-{thread_id}" for thread in threading.enumerate())


@pytest.mark.parametrize("how", ["break", "del", "with", "close"])
def test_an_iterator_that_is_left_early_stops_the_run(how):
    """And the run can be resumed: finished drafts are not asked for again."""
    saver = InMemorySaver()
    if how == "break":
        for event in slow_run(saver, how):
            if event["event"] == "finish":
                break
    else:
        run = slow_run(saver, how)
        assert next(each for each in run if each["event"] == "finish")
        if how == "del":
            del run
        elif how == "with":
            with run:
                pass
        else:
            run.close()
            assert list(run) == []
            with pytest.raises(DrainedError, match="stopped"):
                _ = run.result
            run.close()
    deadline = time.monotonic() + 20
    while num_threads(how) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_threads(how) == 0
    model = Slow(replies=["It is \\boxed{4}."], num_at_once=9)
    result = resume_sync(how, model=model, checkpointer=saver)
    assert result.answer == "4"
    assert len(model.prompts) == 1  # the refinement alone
    past = asyncio.run(history(how, checkpointer=saver))
    assert [len(each.drafts) for each in past.rounds] == [2]


def test_bad_input_of_a_stream_begins_nothing():
    """It is refused where it is given, not where it is read."""
    with pytest.raises(ConfigError, match="unknown preset"):
        stream("x", "pdrr", model=scripted())


PROGRAM = """
import sys
from langgraph.checkpoint.memory import InMemorySaver
from pdr_graph import resume_sync
from tests.test_doors import Slow, slow_run, slow_solve

saver, how = InMemorySaver(), sys.argv[1]
try:
    if how == "solve":
        slow_solve(saver, "t")
    else:
        for event in slow_run(saver, "t"):
            if event["event"] == "finish":
                print("now", flush=True)
except KeyboardInterrupt as error:
    print(error.__notes__)
model = Slow(replies=["It is \\\\boxed{4}."], num_at_once=9)
print(resume_sync("t", model=model, checkpointer=saver).answer, len(model.prompts))
"""


def slow_solve(saver, thread_id):
    """Solve as `slow_run` does, and say when the drafts are there."""

    def on_event(event):
        if event["event"] == "finish":
            sys.stdout.write("now\n")
            sys.stdout.flush()

    model = ModelClient(Slow(replies=[AIMessage("It is \\boxed{4}.")]), retry=NO_WAIT)
    config = preset("pdr", distiller="none", **SMALL)
    parts = Parts(on_event=on_event)
    saved = {"checkpointer": saver, "thread_id": thread_id}
    return solve_sync("x", config, model=model, parts=parts, **saved)


@pytest.mark.parametrize("how", ["solve", "stream"])
def test_ctrl_c_ends_a_run_that_can_be_resumed(how):
    """The program gets its KeyboardInterrupt, with a note on how the run goes on."""
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "now\n"
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert err == ""
    noted, resumed = out.splitlines()
    assert "resume_sync('t', …) continues it" in noted
    assert resumed == "4 1"
    assert program.returncode == 0
