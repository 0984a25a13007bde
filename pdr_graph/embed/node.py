"""PDR as a node of any graph: `builder.add_node("reason", pdr_node(config, model=model))`."""

from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langgraph._internal._runnable import RunnableCallable
from langgraph.runtime import Runtime

from pdr_graph.config import PDRConfig, default_config
from pdr_graph.embed.subrun import (
    as_message,
    charges,
    ledger_channel,
    read_messages,
    subrun,
)
from pdr_graph.errors import ConfigError, raised_by
from pdr_graph.extensions import Extensions, Parts, RunOrder
from pdr_graph.graph import build_graph
from pdr_graph.judge import DraftJudge
from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.models import Models, ModelsByRole
from pdr_graph.prompts import Prompts
from pdr_graph.run import Result
from pdr_graph.trace import Trace


def pdr_node(
    config: PDRConfig | str | Mapping[str, object] | None = None,
    *,
    model: BaseChatModel | ModelClient | Models | str,
    models: ModelsByRole | None = None,
    # Any: the parent's own types of state and update, which LangGraph leaves open.
    input: Callable[[Any], str] = read_messages,
    output: Callable[[Result], Mapping[str, Any]] = as_message,
    parts: Parts | None = None,
    extensions: Extensions | None = None,
    judge: DraftJudge | None = None,
    prompts: Prompts | None = None,
    trace: Trace | None = None,
    stream_answer: bool = False,
    ledger: str | None = None,
) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Return a node that answers by a run of PDR, as a subgraph of the graph it is added to.

    If the parent is compiled with a checkpointer, the run is kept with it. After a crash or an
    error, run the parent again with the input None: no finished draft is asked for again. The cost
    goes to the channel `pdr_ledger: Annotated[list[LedgerRow], merge_rows]` of the parent's state,
    or to `ledger` if that is declared so. A channel of that name with other content is left alone.

    With a `cache_policy`, the cache key of an answer is the parent's state and all that is given
    here.

    Args:
        config: A `PDRConfig`, the name of a preset, or a dict of fields. None takes the parent's
            context if that is a `PDRConfig`, else the recommended preset, `vote_first`.
        model: Any chat model, or a `ModelClient` with limits and a token counter of its own.
        models: Models of their own for some roles, such as `{"refiner": large}`; `types.ROLES` has
            the roles.
        input: Function from the parent's state to the problem; the default reads `messages`.
        output: Function from the result to the parent's update; the default appends one message.
        parts: Extensions, prompts and trace in one object, as `solve` takes them.
        extensions: Distillers, finishes and verifiers of your own.
        judge: Weighs drafts, for the parts that use weights; None leaves all drafts alike.
        prompts: None is the built-in ones.
        trace: Receives every model call in full; None keeps nothing.
        stream_answer: Whether the refinement is streamed, as `chunk` events, while it is written.
        ledger: The channel for the cost; None looks for the two above.

    Raises:
        ConfigError: the config names an unknown part, a role is unknown, or a model or a part has
            the wrong form.
    """
    order = RunOrder.of(
        config,
        model=model,
        models=models,
        parts=parts,
        extensions=extensions,
        judge=judge,
        drops="pdr_node",
        prompts=prompts,
        trace=trace,
        stream_answer=stream_answer,
    )
    order.extensions.check(order.config or default_config())
    given, graph = order.config, build_graph(order.models, parts=order.parts)

    # To draw the subgraph and show its state, LangGraph looks for it among the names that this
    # function closes over.
    async def reason(state: Any, *, runtime: Runtime[Any]) -> dict[str, Any]:
        context = runtime.context if isinstance(runtime.context, PDRConfig) else default_config()
        channel = ledger_channel(ledger)
        with raised_by("input of pdr_node"):
            problem = input(state)
        if not isinstance(problem, str):
            raise ConfigError(
                f"input must return the problem as text, not {type(problem).__name__}"
            )
        result = await subrun(
            graph, problem, given or context, write=runtime.stream_writer, ledger=channel
        )
        with raised_by("output of pdr_node"):
            update = output(result)
        if not isinstance(update, Mapping):
            raise ConfigError(
                "output must return the parent's update as a dict, such as "
                f"{{'summary': result.solution}}, not {type(update).__name__}"
            )
        cost = {} if channel is None else {channel: charges(result)}
        return {**cost, **update}

    def refuse(state: Any, *, runtime: Runtime[Any]) -> dict[str, Any]:
        # LangGraph finds the subgraph in this closure, and its name is used below.
        raise ConfigError(f"{graph.name} is asynchronous; call your graph by ainvoke or astream")

    # LangGraph keeps what a cached node returned under the name of its plain function.
    refuse.__qualname__ = f"pdr_node.{graph.digest}.{_digest(given, input, output)}"
    return _Node(refuse, reason, name="reason", trace=False)


class _Node(RunnableCallable):
    """A node for LangGraph, which is also the function that it calls."""

    def __call__(self, *args: Any, **kwargs: Any) -> Awaitable[dict[str, Any]]:
        assert self.afunc is not None
        return cast(Awaitable[dict[str, Any]], self.afunc(*args, **kwargs))


def _digest(config: PDRConfig | None, *mappings: Callable[..., Any]) -> str:
    fields = "" if config is None else config.model_dump_json()
    parts = [fields, *map(_source, mappings)]
    return sha256(repr(parts).encode()).hexdigest()[:16]


def _source(mapping: Callable[..., Any]) -> str:
    """Return the code of a function as text; for any other callable, its identity."""
    code = getattr(mapping, "__code__", None)
    if code is None:
        return repr(mapping)
    values = [cell.cell_contents for cell in getattr(mapping, "__closure__", None) or ()]
    parts = (mapping.__module__, code.co_code, code.co_consts, code.co_names, values)
    return repr((*parts, getattr(mapping, "__defaults__", None)))
