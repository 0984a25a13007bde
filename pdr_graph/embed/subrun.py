"""One run as a subgraph of the node that calls it: what goes in, and what comes out.

The run is kept by the checkpointer of the graph around it. What it cost is one row of that graph's
ledger, where its state has a channel `ledger: Annotated[list[LedgerRow], merge_rows]`.
"""

from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langgraph._internal._constants import CONFIG_KEY_STREAM
from langgraph.config import get_config
from langgraph.types import StreamWriter

from pdr_graph.bill import CHANNELS, charge_of, takes_ledger
from pdr_graph.config import PDRConfig
from pdr_graph.conversation import problem_of, turns_of_messages
from pdr_graph.errors import ConfigError
from pdr_graph.graph import PDRGraph
from pdr_graph.invocation import SUBRUN, Subrun, at
from pdr_graph.nodes.toolbox import thread_id
from pdr_graph.run import Result, drive
from pdr_graph.types import LedgerRow
from pdr_graph.validation import check_problem


async def subrun(
    graph: PDRGraph,
    problem: str,
    config: PDRConfig,
    *,
    write: StreamWriter,
    ledger: str | None,
    call_id: str | None = None,
) -> Result:
    """Run the graph within the calling node, or continue the run that the node had begun.

    Args:
        graph: Compiled without a checkpointer, so that it takes the parent's.
        problem: The task; a run of another task that stopped here is abandoned.
        config: What is asked for; a continued run keeps its own.
        write: Receives the events where the parent's stream leaves out subgraphs. Where it shows
            them, the events arrive under the subgraph's namespace.
        ledger: Channel of the calling graph that takes the cost; None if it has none.
        call_id: Names the run in its task, as the id of a tool's call does. Empty where the task
            has this run alone; None tells runs of one task apart by their order.

    Raises:
        ConfigError: the request cannot be carried out as asked.
        ContextWindowError, QuorumError, CallError: as for `solve`; run the parent again with the
            input None, and it continues here.
    """
    check_problem(problem)
    keys: dict[str, Any] = get_config()["configurable"]  # Any: LangGraph's own keys
    # Digits only: LangGraph reads them as the number of a subgraph in its task.
    number = str(int(sha256(call_id.encode()).hexdigest()[:15], 16)) if call_id else ""
    own = graph.calls.claimed(keys) if call_id is None else at(keys, number)
    told = Subrun(ledger)
    try:
        result = await drive(
            graph,
            problem,
            config,
            thread_id(),
            keys={**own, SUBRUN: told},
            events=CONFIG_KEY_STREAM not in keys,
            on_event=write,
        )
    except Exception:
        if call_id is None:
            graph.calls.release(own)
        raise
    return replace(result, message_id=told.message_id)


def charge(result: Result) -> LedgerRow:
    """Return a run as one row of the calling node and super-step, for all of its models.

    What each node of the run cost is in the run's own ledger.
    """
    # Model names are removed, since rows of different models would not be joined.
    rows = [LedgerRow({**row, "model": ""}) for row in result.ledger.rows]
    return charge_of(get_config(), _run_of(result), rows)[0]


def charges(result: Result) -> list[LedgerRow]:
    """Return a run as rows of the calling node and super-step, one for each model that it asked."""
    return charge_of(get_config(), _run_of(result), result.ledger.rows)


def _run_of(result: Result) -> str:
    return result.state.get("run", result.thread_id)


def ledger_channel(named: str | None) -> str | None:
    """Return the channel of the calling graph that takes the cost; None if it has none.

    Args:
        named: The channel that the user names; None looks for `pdr_ledger`, then for `ledger`.

    Raises:
        ConfigError: the named channel is absent, or holds something else.
    """
    keys = get_config().get("configurable", {})
    if named is None:
        return next((name for name in CHANNELS if takes_ledger(keys, name)), None)
    if (fits := takes_ledger(keys, named)) is not True:
        what = "has no such channel" if fits is None else "uses it for something else"
        raise ConfigError(
            f"ledger={named!r}: the graph {what}; declare it as "
            "Annotated[list[LedgerRow], merge_rows], or name another"
        )
    return named


def read_messages(state: Any) -> str:  # Any: the parent's own type of state
    """Return what the state's `messages` ask for, as `problem_of` puts it.

    Raises:
        ConfigError: the state has no `messages`, none of a user with any text, or a picture or the
            like in the task.
    """
    messages = state.get("messages") if isinstance(state, Mapping) else None
    messages = getattr(state, "messages", None) if messages is None else messages
    if messages is None:
        raise ConfigError(
            "the state has no `messages` to read the problem from; pass pdr_node(…, input=…) a "
            "function from the state to the problem"
        )
    return problem_of(turns_of_messages(messages))


def as_message(result: Result) -> dict[str, Any]:  # Any: the parent's own type of update
    """Return an update that appends the solution to `messages`.

    Its `usage_metadata` is B_total, as a call of that size would have it; answer, verdict and
    ledger are in `response_metadata["pdr"]`.
    """
    total = result.ledger.total()
    prompt, completion = total["prompt_tokens"], total["completion_tokens"]
    message = AIMessage(
        result.solution,
        # The refinement is streamed under this id: it is the same message.
        id=result.message_id or f"pdr-{result.state.get('run', uuid4().hex)}",
        usage_metadata=UsageMetadata(
            input_tokens=prompt,
            output_tokens=completion,
            total_tokens=prompt + completion,
            input_token_details=InputTokenDetails(cache_read=total["cached_tokens"]),
            output_token_details=OutputTokenDetails(reasoning=total["reasoning_tokens"]),
        ),
        response_metadata={"pdr": report(result)},
    )
    return {"messages": [message]}


def report(result: Result) -> dict[str, Any]:  # Any: plain JSON data
    """Return a run without its text, as plain data that any store keeps."""
    whole = result.to_json()
    kept = {name: whole[name] for name in ("preset", "answer", "verdict", "ledger")}
    return kept | {"notes": list(result.notes)}
