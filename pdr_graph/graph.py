"""The state machine: one graph for every strategy.

    START → plan ─→ drafter × M_r (Send) ─→ distiller ─→ plan │ refiner ─→ verifier ─→ END │ plan
               └──→ refiner

Routers read the state alone and take no runtime: LangGraph evaluates them again when a state is
edited (`update_state`, a fork in Studio), where there is no runtime.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from hashlib import sha256
from time import perf_counter
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langgraph._internal._config import ensure_config
from langgraph._internal._constants import CONFIG_KEY_RESUMING, CONFIG_KEY_TASK_ID
from langgraph._internal._runnable import RunnableCallable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Send

from pdr_graph import bill, invocation
from pdr_graph.budget import elapsed_s, merge_rows
from pdr_graph.config import PDRConfig, default_config, form_of, make_config
from pdr_graph.errors import ConfigError
from pdr_graph.events import BeginEvent, EndEvent, StoppedEvent, log_event
from pdr_graph.extensions import Extensions, Parts, RunOrder, check_saver
from pdr_graph.invocation import GraphCalls, Invocation, Keys, Subrun
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models, ModelsByRole
from pdr_graph.nodes.distiller import DistillerNode
from pdr_graph.nodes.drafter import Drafter
from pdr_graph.nodes.plan import Planner
from pdr_graph.nodes.solution import Refiner, Verifier
from pdr_graph.nodes.toolbox import Toolbox
from pdr_graph.prompts import Prompts
from pdr_graph.state import DraftTask, PDRState, ProblemInput, missing_drafts, rounds_left, state_of
from pdr_graph.trace import Trace

logger = logging.getLogger(__name__)


def after_plan(state: PDRState) -> list[Send] | Literal["refiner"]:
    """Send a drafter for every draft that the round still owes, or finish."""
    if state["phase"] != "draft":
        return "refiner"
    owed = [Send("drafter", task) for task in missing_drafts(state)]
    # A round whose state was edited may owe none.
    return owed or [Send("distiller", state)]


def after_distiller(state: PDRState) -> Literal["plan", "refiner"]:
    """Plan the next round if one is left and the drafts have not agreed, or this one goes on."""
    if state["phase"] == "short":
        return "plan"
    if state.get("consensus") is None and rounds_left(state) > 0:
        return "plan"
    return "refiner"


def after_verifier(state: PDRState) -> Literal["plan", "__end__"]:
    """Go back for another round if the verifier granted one."""
    return "plan" if state["phase"] == "draft" else "__end__"


OUTPUTS = ("solution", "verdict", "ledger")
"""Channels that a parent graph gets from this one; it may use the other names for its own."""


class PDRGraph(CompiledStateGraph[PDRState, PDRConfig, ProblemInput, PDRState]):
    """The compiled graph, which tells a new problem from a run to be continued.

    Whoever calls it (`solve`, a parent graph, LangGraph's server) gets the same: new input opens a
    new run, None continues the one that stopped, and each call is in a ledger once.
    """

    def __init__(
        self,
        *,
        calls: GraphCalls | None = None,
        digest: str = "",
        models: Models | None = None,
        **parts: Any,  # Any: LangGraph's own
    ) -> None:
        super().__init__(**parts)
        self.calls = calls or GraphCalls()
        self.digest = digest
        """Short hash of all that an answer depends on beside problem and config."""
        self.models = models
        """The models of the graph, whose prices results use; None states no prices."""

    @property
    def __name__(self) -> str:
        # LangGraph keeps what a cached node returned under this name.
        return f"PDRGraph.{self.digest}"

    async def astream(
        self,
        input: Any,  # Any: a parent graph hands over its whole state
        config: RunnableConfig | None = None,
        *,
        output_keys: str | Sequence[str] | None = None,
        stream_mode: Any = None,
        **options: Any,
    ) -> AsyncIterator[Any]:
        """Run the graph, and stream what it does, as `CompiledStateGraph.astream`."""
        if stream_mode is None:  # as LangGraph chooses, by the config as it was given
            called = config is not None and CONFIG_KEY_TASK_ID in config.get("configurable", {})
            stream_mode = "values" if called else self.stream_mode
        if options.get("context") == {}:
            options["context"] = None  # a server hands an empty one in where its caller gives none
        begun = perf_counter()
        full = ensure_config(self.config, config)
        keys: Keys = dict(full["configurable"])
        nested = invocation.is_nested(keys)
        call = Invocation(context=invocation.outer_context(keys))
        call.handed = invocation.handed(full, options.get("context"), call.context)
        subrun: Subrun | None = keys.pop(invocation.SUBRUN, None)
        if subrun:
            call.ledger = subrun.ledger
            call.caller = {"metadata": full["metadata"], "configurable": keys}
        elif nested:
            keys = self.calls.claimed(keys)
            fits = bill.takes_ledger(keys, "ledger")
            call.ledger = "ledger" if fits else None
            output_keys = [name for name in OUTPUTS if name != "ledger" or fits is not False]
        if self.checkpointer is True:
            keys = invocation.shared_place(keys)
        given = invocation.input_of(input, nested=nested, context=options.get("context"))
        given, keys = await self._enter(call, given, full, keys)
        worked_s, thread_id, told = call.worked_s, invocation.place(keys)[0], 0
        try:
            run = super().astream(
                given,
                {**(config or {}), "configurable": keys},
                output_keys=output_keys,
                stream_mode=stream_mode,
                **options,
            )
            # Closed at once if the caller leaves, so that everything written is in the store.
            async with aclosing(run):  # type: ignore[type-var]  # declared as an iterator
                async for part in run:
                    settled = call.charges.num_settled
                    # Less and less often in a wide round, since each report stores all rows anew.
                    if nested and settled - told > told // 8:
                        told = settled
                        await self._tell_around(call, keys)
                    yield part
        except BaseException as error:
            if nested and not subrun:
                self.calls.release(keys)
            log_event(thread_id, StoppedEvent(event="stopped", error=type(error).__name__))
            # Any other error ends the process.
            if isinstance(error, Exception | asyncio.CancelledError | GeneratorExit):
                await self._bill(call, keys)
            raise
        if subrun is not None:
            subrun.message_id = call.message_id
        # In a graph around this one, a parallel task may fail. Its super-step then loses this
        # result.
        if call.b_total is None or call.charges.lost() or nested:
            await self._bill(call, keys)
        if call.b_total is not None:
            seconds = round(worked_s + perf_counter() - begun, 3)
            log_event(thread_id, EndEvent(event="end", seconds=seconds, b_total=call.b_total))

    async def _enter(
        self, call: Invocation, input: Any, full: RunnableConfig, keys: Keys
    ) -> tuple[Any, Keys]:
        """Return the input and `configurable` that LangGraph is to have for a call."""
        keys = {**keys, invocation.KEY: call}
        saver = invocation.saver_of(keys, self.checkpointer)
        at: RunnableConfig = {"configurable": keys}
        saved = await saver.aget_tuple(at) if saver is not None else None
        nested, run_id = invocation.is_nested(keys), full.get("metadata", {}).get("run_id")
        if not invocation.continues(input, keys, saved, run_id):
            call.opens = True
            call.abandoned = bill.unfinished_rows(saved) or self.calls.owed(keys)
            if saver is not None and saved is not None and call.abandoned:
                await bill.keep_unfinished(saver, saved)
                call.abandoned = bill.untold(call, keys, saved)
            if nested:
                keys[CONFIG_KEY_RESUMING] = False
            return input, keys
        if saved is None:
            return input, keys
        if nested:
            keys[CONFIG_KEY_RESUMING] = True
            if not await invocation.is_answered(saver, keys, saved):
                keys = invocation.without_answer(keys)
        before = await self.aget_state(at)
        replayed = bool(keys.get("checkpoint_id"))
        if invocation.has_new_input(saved, replayed=replayed) and before.next in {
            (START,),
            ("plan",),
        }:
            call.opens = True
            call.abandoned = bill.unfinished_rows(saved)
            return input, keys
        state = state_of(saved.checkpoint["channel_values"])
        call.run, call.before = state.get("run", ""), list(state.get("ledger", []))
        call.worked_s = elapsed_s(state.get("ledger", []))
        strategy = make_config(**state.get("config", {})).strategy
        begin = BeginEvent(event="begin", preset=strategy, resumed=True)
        log_event(str(keys["thread_id"]), begin)
        if state.get("phase") != "done" and not before.tasks:
            # LangGraph stored the writes of the last node but not the next node. Writing the phase
            # once more sets the next node.
            after = await self.aupdate_state(at, {"phase": state.get("phase")})
            if keys.get("checkpoint_id"):
                keys["checkpoint_id"] = after["configurable"]["checkpoint_id"]
        return input, keys

    async def _tell_around(self, call: Invocation, keys: Keys) -> None:
        """Store the cost so far in the graphs around this one, since the run may be killed."""
        saver = invocation.saver_of(keys, self.checkpointer)
        if saver is not None:
            rows = bill.charge(call, merge_rows(call.before, call.charges.settled()))
            await bill.settle_around(saver, keys, call, rows)

    async def _bill(self, call: Invocation, keys: Keys) -> None:
        """Store the cost of the call that no node has written to the ledger."""
        saver = invocation.saver_of(keys, self.checkpointer)
        if saver is None:
            if call.b_total is None:
                self.calls.failed(keys, [*call.abandoned, *call.charges.rows()])
            return
        try:
            rows = await bill.settle(saver, keys, call.charges)
            if rows:
                await bill.settle_around(saver, keys, call, bill.charge(call, rows))
        # The store may have stopped the run. That first error is raised, so this one is logged.
        except Exception as error:  # noqa: BLE001
            logger.warning("ledger.incomplete thread=%s error=%s", keys["thread_id"], error)


def _digest(toolbox: Toolbox, default: PDRConfig) -> str:
    hashes = toolbox.prompts.of_run(default).hashes()
    steps = [
        # An imported step is known by its name, which is the same in every process.
        sorted((name, "" if ":" in name else repr(step)) for name, step in steps.items())
        for steps in (
            toolbox.extensions.distillers,
            toolbox.extensions.finishes,
            toolbox.extensions.verifiers,
        )
    ]
    judge = toolbox.extensions.judge
    weighed = "" if judge is None else judge.digest
    models = toolbox.models.names or toolbox.models.name
    what = (default.model_dump_json(), models, hashes, steps, weighed)
    return sha256(repr(what).encode()).hexdigest()[:16]


def _router(route: Callable[[PDRState], Any], ends: Sequence[str]) -> tuple[Any, list[str]]:
    """Return a router for sync and async calls, and the nodes to which it may lead.

    A plain function would be called in a thread. A run cancelled in that time would keep the writes
    of the node but not the next node.
    """

    async def at_once(state: PDRState) -> Any:  # Any: names and `Send`s
        return route(state)

    return RunnableCallable(route, at_once, name=route.__name__, trace=False), list(ends)


def build_graph(
    model: BaseChatModel | ModelClient | Models | str,
    *,
    models: ModelsByRole | None = None,
    default: PDRConfig | str | Mapping[str, object] | None = None,
    config: PDRConfig | str | Mapping[str, object] | None = None,
    checkpointer: BaseCheckpointSaver[str] | None = None,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
    prompts: Prompts | None = None,
    trace: Trace | None = None,
    stream_answer: bool = False,
) -> PDRGraph:
    """Compile the graph; its input is `{"problem": ...}`, its context a `PDRConfig`.

    Args:
        model: Any chat model, or a `ModelClient` with limits and a token counter of its own.
        models: Models of their own for some roles, such as `{"refiner": large}`; `types.ROLES` has
            the roles.
        default: The older name of `config`.
        config: Config of runs whose caller gives none: a `PDRConfig`, the name of a preset, or a
            dict of fields; None is the recommended preset.
        checkpointer: Where runs are kept; None if a parent graph or a server provides one.
        parts: Extensions, prompts and trace in one object, as `solve` takes them.
        extensions: Distillers, finishes and verifiers of your own; those that `config` names as
            `package.module:attribute` are imported.
        judge: Weighs drafts, for the parts that use weights; None leaves all drafts alike.
        prompts: None is the built-in ones.
        trace: Receives every model call in full; None keeps nothing.
        stream_answer: Whether the refinement is streamed while the model writes it, as `chunk`
            events on the stream `custom`.

    Raises:
        ConfigError: a role is unknown, its model is no model, or the config or a part has the wrong
            form.
    """
    if config is not None and default is not None:
        raise ConfigError("config and default are one thing; leave one of them out")
    order = RunOrder.of(
        default if config is None else config,
        model=model,
        models=models,
        parts=parts,
        extensions=extensions,
        judge=judge,
        drops="a compiled graph",
        prompts=prompts,
        trace=trace,
        stream_answer=stream_answer,
    )
    if not isinstance(checkpointer, bool):  # which LangGraph takes too
        check_saver(checkpointer)
    if order.config is not None:
        order.extensions.of(order.config).check(order.config)
    default = order.config or default_config()
    toolbox = Toolbox(
        models=order.models,
        extensions=order.extensions,
        prompts=order.parts.prompts or Prompts.load(),
        trace=order.parts.trace,
        stream_answer=order.parts.stream_answer,
    )
    builder = StateGraph(PDRState, context_schema=form_of(default), input_schema=ProblemInput)
    builder.add_node("plan", Planner(toolbox, default), input_schema=PDRState)
    builder.add_node("drafter", Drafter(toolbox), input_schema=DraftTask)
    builder.add_node("distiller", DistillerNode(toolbox), input_schema=PDRState)
    builder.add_node("refiner", Refiner(toolbox), input_schema=PDRState)
    builder.add_node("verifier", Verifier(toolbox), input_schema=PDRState)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", *_router(after_plan, ["drafter", "refiner"]))
    builder.add_edge("drafter", "distiller")
    builder.add_conditional_edges("distiller", *_router(after_distiller, ["plan", "refiner"]))
    builder.add_edge("refiner", "verifier")
    builder.add_conditional_edges("verifier", *_router(after_verifier, ["plan", END]))
    compiled = vars(builder.compile(checkpointer=checkpointer, name="pdr"))
    return PDRGraph(**compiled, digest=_digest(toolbox, default), models=toolbox.models)


def max_supersteps(config: PDRConfig) -> int:
    """Return a recursion limit that no run of this config reaches."""
    rounds = len(config.widths) + config.max_extra_rounds + 1
    return 3 * rounds + 10  # a round is three: plan, drafters, distiller
