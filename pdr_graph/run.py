"""Runs the graph on a problem, durably: a run that is killed at any moment can be resumed.

Checkpoints are written with durability `sync`: a super-step starts only once the one before it is
stored. So a store that is lost stops the run, and never loses its answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from time import perf_counter
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.errors import GraphDrained
from langgraph.graph import START
from langgraph.runtime import RunControl
from langgraph.types import Command

from pdr_graph import bill
from pdr_graph.answers import exact
from pdr_graph.budget import Ledger, elapsed_s
from pdr_graph.config import PDRConfig, changed_fields, default_config, make_config
from pdr_graph.errors import (
    ConfigChangedError,
    ConfigError,
    ContextWindowError,
    DrainedError,
    OtherGraphError,
    ThreadExistsError,
    UnknownThreadError,
    WaitingError,
    counted,
    raised_by,
)
from pdr_graph.events import OnEvent
from pdr_graph.extensions import Extensions, RunOrder, check_saver
from pdr_graph.extensions import Parts as Parts
from pdr_graph.graph import PDRGraph, build_graph, max_supersteps
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models, ModelsByRole, changed_models
from pdr_graph.prompts import Prompts
from pdr_graph.state import (
    PDRState,
    config_of,
    is_run,
    reading,
    state_of,
    stored_config,
    stored_state,
)
from pdr_graph.types import Verdict
from pdr_graph.types import new_thread_id as new_thread_id
from pdr_graph.validation import check_problem


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run."""

    thread_id: str
    config: PDRConfig
    answer: str | None
    """The final answer as extracted; None if the solution states none."""
    solution: str
    verdict: Verdict
    ledger: Ledger
    notes: tuple[str, ...]
    """Sentences on what the run did otherwise than planned, and why."""
    seconds: float
    """Wall-clock time; for a resumed run the work before the interruption is added."""
    state: PDRState = field(repr=False)
    """The final state, whole."""
    message_id: str = ""
    """Id of the model's message that is the solution; known inside a graph that streams it."""

    @classmethod
    def of_state(
        cls, thread_id: str, state: PDRState, seconds: float, models: Models | None = None
    ) -> "Result":
        """Read the state of a finished run; `models` state prices, None states none."""
        solution, verdict = state["solution"], state["verdict"]
        assert solution is not None  # set before the graph can end
        assert verdict is not None
        return cls(
            thread_id=thread_id,
            config=config_of(state),
            answer=solution["answer"],
            solution=solution["text"],
            verdict=verdict,
            ledger=ledger_of(state, models),
            notes=tuple(state.get("notes", [])),
            seconds=seconds,
            state=state,
        )

    @property
    def agreement(self) -> tuple[int, int] | None:
        """Drafts that give the answer, and all usable drafts; None without an answer or drafts.

        The drafts are those of the last round, or of all rounds if they are pooled. Answers count
        as one if they are the same number or text; the run itself compares formulas too.
        """
        tally, drafts = self.state.get("tally"), self.state.get("drafts", [])
        votes = (
            [(vote["answer"], vote["count"]) for vote in tally["votes"]]
            if tally is not None
            else [(draft["answer"], 1) for draft in drafts if draft["answer"] is not None]
        )
        usable = sum(not draft["error"] for draft in drafts) if tally is None else tally["voters"]
        if self.answer is None or not usable:
            return None
        return sum(count for answer, count in votes if _is_same(answer, self.answer)), usable

    def facts(self) -> list[tuple[str, str]]:
        """Return the answer and what supports it, each as a name and a phrase."""
        answer = "none stated" if self.answer is None else _printable(self.answer)
        if self.config.answer == "text":
            answer = f"a text of {counted(len(self.solution), 'character')}, the solution"
        facts = [("answer", answer)]
        if (agreement := self.agreement) is not None:
            facts.append(("agreement", f"{agreement[0]} of {counted(agreement[1], 'draft')}"))
        return [*facts, ("verdict", self._verdict())]

    def _verdict(self) -> str:
        verifier, accepted = self.verdict["verifier"], self.verdict["accepted"]
        if verifier == "none":
            return "not judged"
        word = {True: "accepted", False: "rejected", None: "undecided"}[accepted]
        reason = self.verdict["reason"]
        return _printable(f"{word} by {verifier}{reason and f': {reason}'}")

    def __str__(self) -> str:
        """Return the few lines that `print` shows."""
        lines = [*self.facts(), *self.ledger.sums(self.seconds)]
        notes = [("note", _printable(note)) for note in self.notes]
        lines += [*notes, ("thread", _printable(self.thread_id))]
        return "\n".join(f"{name:<10} {said}" for name, said in lines)

    def _repr_html_(self) -> str:
        """Return what Jupyter shows: the answer and what supports it, the solution, the ledger."""
        lines = [*self.facts(), *(("note", _printable(note)) for note in self.notes)]
        facts = "".join(
            f"<tr><th>{name}</th><td style='text-align: left'>{escape(said)}</td></tr>"
            for name, said in lines
        )
        return (
            f"<table>{facts}</table>"
            "<details><summary>solution</summary>"
            f"<pre style='white-space: pre-wrap'>{escape(self.solution)}</pre></details>"
            "<details><summary>cost</summary>"
            f"{self.ledger._repr_html_()}<div>{self.seconds:.1f} s</div></details>"
        )

    def to_json(self) -> dict[str, Any]:  # Any: plain JSON data
        """Return the object that `pdr-graph solve --json` prints."""
        return {
            "thread_id": self.thread_id,
            "preset": self.config.strategy,
            "answer": self.answer,
            "solution": self.solution,
            "verdict": dict(self.verdict),
            "ledger": self.ledger.to_json(),
            "seconds": round(self.seconds, 3),
        }


def _is_same(left: str, right: str) -> bool:
    return left == right or exact.equal(left, right) is True


def _printable(text: str) -> str:
    """Return a model's text as one line that does nothing to a terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def ledger_of(state: PDRState, models: Models | None = None) -> Ledger:
    """Return what a run has cost; `models` state prices, None states none."""
    record = state.get("record")
    return Ledger(
        tuple(state.get("ledger", [])),
        model="" if record is None else record["model"],
        prices={} if models is None else models.prices,
    )


async def solve(
    problem: str,
    config: PDRConfig | str | Mapping[str, object] | None = None,
    *,
    model: BaseChatModel | ModelClient | Models | str,
    models: ModelsByRole | None = None,
    checkpointer: BaseCheckpointSaver[str] | None = None,
    thread_id: str | None = None,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
) -> Result:
    """Run the method on one problem.

    Args:
        problem: The task, in plain text or Markdown.
        config: A `PDRConfig`, the name of a preset, or a dict of fields; None is the recommended
            preset, `vote_first`. Budgets that nobody has set follow the model's context window.
        model: Any LangChain chat model, or its name as `init_chat_model` takes it, such as
            `openai:gpt-5`; share one `ModelClient` between the runs of a process.
        models: Models of their own for some roles, such as `{"refiner": large}`; `types.ROLES` has
            the roles.
        checkpointer: Where the run is kept; without one it cannot be resumed.
        thread_id: Names the run; None makes up a name.
        parts: Extensions, prompts, trace, progress and stop control.
        extensions: Distillers, finishes and verifiers of your own, here or in `parts`.
        judge: Weighs drafts, here or in `extensions`; None leaves all drafts alike.

    Raises:
        ConfigError: the request cannot be carried out as asked.
        StepError: a step of the caller's own raised an error, or returned a value of the wrong
            form; the run can be resumed.
        ThreadExistsError: the thread already holds a run.
        ContextWindowError: prompt and completion do not fit the model; raised before any draft.
        QuorumError: too few drafts of a round succeeded; the run can be resumed.
        CallError: a call that the run cannot do without failed; the run can be resumed.
        DrainedError: the run was asked to stop; it can be resumed.
        WaitingError: a step of the caller's own asks a person; `resume` takes the answer.
    """
    check_problem(problem)
    check_saver(checkpointer)
    order = RunOrder.of(
        config, model=model, models=models, parts=parts, extensions=extensions, judge=judge
    )
    parts, config = order.parts, order.config or default_config()
    order.extensions.check(config)
    order.models.for_run(config)
    graph = _graph(order, checkpointer)
    thread_id = thread_id or new_thread_id()
    if checkpointer is not None and (await graph.aget_state(_place(thread_id))).created_at:
        raise ThreadExistsError(thread_id)
    try:
        return await drive(
            graph,
            problem,
            config,
            thread_id,
            on_event=parts.on_event,
            control=parts.control,
        )
    except (ConfigError, ContextWindowError):
        # The first step refused the run, so the thread must be free for the corrected run.
        if checkpointer is not None:
            state = (await graph.aget_state(_place(thread_id))).values
            if "record" not in state:
                await checkpointer.adelete_thread(thread_id)
        raise


async def resume(
    thread_id: str,
    config: PDRConfig | str | Mapping[str, object] | None = None,
    *,
    model: BaseChatModel | ModelClient | Models | str,
    models: ModelsByRole | None = None,
    checkpointer: BaseCheckpointSaver[str],
    changes: dict[str, object] | None = None,
    answer: object = None,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
) -> Result:
    """Resume a run that was killed, stopped or failed; finished drafts are not asked for again.

    A run that has ended is returned as it ended, without any call.

    Args:
        thread_id: The run.
        config: What the run was started with, in any form that `solve` takes, for a caller who
            insists on it; None takes what is recorded.
        model: The model that the run was started with.
        models: The models of single roles that the run was started with.
        checkpointer: Where the run is kept.
        changes: Config fields that the caller insists on; the run is refused if it was started
            with others. A step that the run names as `package.module:attribute` is imported only
            if it is given again here, in `config`, or by `extensions`.
        answer: What a person says to the question that the run waits for; None where it waits for
            nobody.
        parts: As for `solve`, like the two below.
        extensions: Distillers, finishes and verifiers of your own, here or in `parts`.
        judge: Weighs drafts, here or in `extensions`.

    Raises:
        UnknownThreadError: nothing is recorded under this thread.
        OtherGraphError: the thread holds a run of another graph.
        DamagedRunError: the stored run is malformed.
        ConfigChangedError: `changes`, the models, the judge or the prompts differ from the record.
        ConfigError: there is an answer, and the run asks nothing; or the run names code that the
            caller does not.
        StepError, QuorumError, CallError, DrainedError, WaitingError: as for `solve`.
    """
    check_saver(checkpointer)
    order = RunOrder.of(
        config, model=model, models=models, parts=parts, extensions=extensions, judge=judge
    )
    if order.config is not None:
        order.extensions.of(order.config).check(order.config)
        changes = {**_insisted(order.config), **(changes or {})}
    parts, asked = order.parts, order.models
    steps = order.extensions.with_code(changes or {})
    graph = _graph(replace(order, extensions=steps), checkpointer)
    with reading(thread_id):
        snapshot = await graph.aget_state(_place(thread_id))
    if not snapshot.created_at:
        raise UnknownThreadError(thread_id)
    if not is_run(snapshot):
        raise OtherGraphError(thread_id)
    state = await with_input(state_of(snapshot.values), snapshot.config, checkpointer)
    recorded = stored_config(state, thread_id)
    _refuse_changes(thread_id, state, recorded, changes or {}, asked, parts)
    worked_s = elapsed_s(state.get("ledger", []))
    # `next` is also empty when the last step's writes are stored but its checkpoint is not.
    if not snapshot.next and state.get("phase") == "done":
        if snapshot.tasks:
            await bill.keep_end(checkpointer, snapshot.config)
        with reading(thread_id):
            return Result.of_state(thread_id, state, worked_s, asked)
    steps.check(recorded)
    if answer is not None and not snapshot.interrupts:
        raise ConfigError(f"thread {thread_id!r} waits for no answer; resume it without {answer!r}")
    return await drive(
        graph,
        None,
        recorded,
        thread_id,
        answer=answer,
        on_event=parts.on_event,
        control=parts.control,
        worked_s=worked_s,
    )


async def drive(
    graph: PDRGraph,
    problem: str | None,
    config: PDRConfig,
    thread_id: str,
    *,
    answer: object = None,
    keys: dict[str, Any] | None = None,
    events: bool = True,
    on_event: OnEvent | None = None,
    control: RunControl | None = None,
    worked_s: float = 0.0,
) -> Result:
    """Run the compiled graph to its end, or to the error that stops it.

    Args:
        graph: Made by `build_graph`.
        problem: The task; None resumes the run of the thread.
        config: What the run is asked to do.
        thread_id: Names the run.
        answer: A person's, for a run that waits for it.
        keys: `configurable` of a run that is a subgraph of the calling node, kept by the graph
            around it; None for a run of its own.
        events: Whether to pass the events on. A graph around this one whose stream shows subgraphs
            takes the events itself, and would lose them to a second reader.
        on_event: Receives the events; None drops them.
        control: Stops the run at the next super-step when asked to; None never does.
        worked_s: Seconds that earlier processes have worked on the run.

    Raises:
        DrainedError: the run was asked to stop.
        WaitingError: it asks a person, or has come to a breakpoint.
        PDRError: whatever else stopped it.
    """
    started = perf_counter()
    entry: dict[str, Any] | Command[Any] | None = None if answer is None else Command(resume=answer)
    if problem is not None:
        name = "config" if keys is None else "pdr_config"
        entry = {"problem": problem, name: config.asked()}
    run: RunnableConfig = _place(thread_id) if keys is None else {"configurable": keys}
    state: PDRState = {}
    try:
        async for part in graph.astream(
            entry,
            {**run, "recursion_limit": max_supersteps(config)},
            context=config if problem is not None else None,
            stream_mode=["custom", "values"] if events else ["values"],
            control=control,
            durability=None if graph.checkpointer is None else "sync",
            version="v2",
        ):
            if part["type"] == "values":
                state = state_of(part["data"])
            elif part["type"] == "custom" and on_event is not None:
                with raised_by("on_event"):
                    on_event(part["data"])
    except GraphDrained as error:
        raise DrainedError(thread_id) from error
    if state.get("phase") != "done":
        raise await _waiting(graph, thread_id, keys)
    seconds = worked_s + perf_counter() - started
    return Result.of_state(thread_id, state, seconds, graph.models)


async def _waiting(graph: PDRGraph, thread_id: str, keys: dict[str, Any] | None) -> WaitingError:
    """Return the error of a run that ended at a breakpoint, or with a question to a person."""
    kept = graph.checkpointer is not None or keys is not None
    place: RunnableConfig = _place(thread_id) if keys is None else {"configurable": keys}
    snapshot = await graph.aget_state(place) if kept else None
    questions = [] if snapshot is None else [each.value for each in snapshot.interrupts]
    return WaitingError(thread_id, questions, () if snapshot is None else snapshot.next)


async def with_input(
    state: PDRState, place: RunnableConfig, checkpointer: BaseCheckpointSaver[str]
) -> PDRState:
    """Return the state at a checkpoint, read from the store where it does not hold the config.

    A run that was killed before its first step has an input and no state. LangGraph keeps the
    input as a checkpoint of its own and takes it over in a step without a node.

    Raises:
        DamagedRunError: a field of a run has another form than it should.
    """
    thread_id = str(place["configurable"]["thread_id"])
    if "config" in state:
        return stored_state(state, thread_id)
    found = await checkpointer.aget_tuple(place)
    values = found.checkpoint["channel_values"] if found is not None else {}
    given = values.get(START)
    whole = {**(given if isinstance(given, dict) else {}), **values, **state}
    return stored_state(whole, thread_id) if "config" in whole else state_of(whole)


def _graph(order: RunOrder, checkpointer: BaseCheckpointSaver[str] | None) -> PDRGraph:
    return build_graph(
        order.models,
        checkpointer=checkpointer,
        extensions=order.extensions,
        prompts=order.parts.prompts,
        trace=order.parts.trace,
        stream_answer=order.parts.stream_answer,
    )


def _insisted(config: PDRConfig) -> dict[str, object]:
    """Return the fields that a caller insists on: all but those that the run fills in itself."""
    return config.asked()


def _place(thread_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id}}


def _refuse_changes(
    thread_id: str,
    state: PDRState,
    config: PDRConfig,
    changes: dict[str, object],
    models: Models,
    parts: Parts,
) -> None:
    left_out: list[str] = []
    changed = changed_fields(config, make_config(**{**config.model_dump(), **changes}))
    record = state.get("record")
    if record is not None:
        changed += changed_models(record, models.for_run(config).recorded)
        was, now = record["prompts"], (parts.prompts or Prompts.load()).of_run(config).hashes()
        # The built-in prompts may have changed since the run began.
        compared = was if parts.prompts is not None else record.get("own_prompts", [])
        # A prompt that the record or this version lacks is not compared.
        if any(was[name] != now[name] for name in was.keys() & now.keys() & set(compared)):
            (left_out if parts.prompts is None else changed).append("set of prompts")
        judge = None if parts.extensions is None else parts.extensions.of(config).judge
        if record.get("judge", "") != (judge.digest if judge is not None else ""):
            (left_out if judge is None else changed).append("judge")
    if changed or left_out:
        raise ConfigChangedError(thread_id, changed, left_out)
