"""One run as a subgraph of the node that is being executed.

What a whole run costs the graph that holds it, as one row of the parent's ledger.

The parent's channel is `ledger: Annotated[list[LedgerRow], merge_rows]`.

What whoever embeds a run hands in, looked at before anything runs.

A conversation as one problem, and a result as its next message.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, convert_to_messages
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata
from langchain_core.runnables import RunnableConfig
from langgraph._internal._constants import (
    CONFIG_KEY_CHECKPOINTER,
    CONFIG_KEY_RESUMING,
    CONFIG_KEY_STREAM,
)
from langgraph.config import get_config
from langgraph.types import StreamWriter

from pdr_graph.budget import elapsed_s
from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.events import log_event
from pdr_graph.extensions import Extensions
from pdr_graph.graph import PDRGraph, max_supersteps
from pdr_graph.llm.client import ModelClient
from pdr_graph.nodes.toolbox import superstep
from pdr_graph.run import Result
from pdr_graph.state import PDRState, ProblemInput, owes_drafts, state_of
from pdr_graph.types import LedgerRow


async def subrun(
    graph: PDRGraph, problem: str, config: PDRConfig, *, write: StreamWriter
) -> Result:
    """Run the graph within the calling node, or go on with the run that the node had begun.

    Args:
        graph: Compiled without a checkpointer, so that it takes the parent's.
        problem: The task; unused by a run that goes on.
        config: What is asked for; a run that goes on keeps its record.
        write: Receives the events where the parent's stream does not show subgraphs. Where it
            does they arrive under the subgraph's namespace.

    Raises:
        ConfigError: the request cannot be carried out as asked.
        ContextWindowError, QuorumError, CallError: as for `solve`; run the parent again with the
            input None, and it goes on from here.
    """
    if not problem.strip():
        raise ConfigError("the problem is empty; state the task to be solved")
    outer = get_config()
    await _ask_again(graph, outer)
    # Without a stream that shows subgraphs their events would be dropped, not passed up.
    forwards = CONFIG_KEY_STREAM not in outer["configurable"]
    state: PDRState = {}
    thread_id = str(outer["configurable"].get("thread_id", ""))
    async for part in graph.astream(
        ProblemInput(problem=problem, config=config.model_dump(mode="json")),
        {"recursion_limit": max_supersteps(config)},
        context=config,
        stream_mode=["custom", "values"] if forwards else ["values"],
        version="v2",
    ):
        if part["type"] == "custom":
            log_event(thread_id, part["data"])
            write(part["data"])
        elif part["type"] == "values":
            state = state_of(part["data"])
    return Result.of_state(thread_id, state, elapsed_s(state.get("ledger", [])))


async def _ask_again(graph: PDRGraph, outer: RunnableConfig) -> None:
    """Let a round that stopped below its quorum ask for the missing drafts."""
    known: dict[str, Any] = outer["configurable"]  # Any: LangGraph's own keys
    if not (known.get(CONFIG_KEY_RESUMING) and known.get(CONFIG_KEY_CHECKPOINTER)):
        return
    snapshot = await graph.aget_state(outer)
    if snapshot.created_at and owes_drafts(snapshot):
        await graph.aupdate_state(outer, {"phase": "draft"}, as_node="plan")


def charge(result: Result) -> LedgerRow:
    """Return a run as one row of the calling node and super-step.

    Runs side by side in one super-step of the parent merge into the longest of them, as calls of
    one step do; what each node of the run cost is in the run's own ledger.
    """
    rows = result.ledger.rows
    return LedgerRow(
        round=0,
        node=str(get_config().get("metadata", {}).get("langgraph_node", "")),
        step=superstep(),
        calls=sum(row["calls"] for row in rows),
        prompt_tokens=sum(row["prompt_tokens"] for row in rows),
        cached_tokens=sum(row["cached_tokens"] for row in rows),
        completion_tokens=sum(row["completion_tokens"] for row in rows),
        reasoning_tokens=sum(row["reasoning_tokens"] for row in rows),
        failed=sum(row["failed"] for row in rows),
        aborted=sum(row["aborted"] for row in rows),
        seconds=sum(row["seconds"] for row in rows),
        estimated=result.ledger.estimated,
        critical_tokens=result.ledger.b_seq,
        nominal_tokens=sum(row["nominal_tokens"] for row in rows),
        critical_nominal=sum(row["critical_nominal"] for row in rows),
    )


def check_given(config: object, model: object, extensions: Extensions) -> None:
    """Refuse what cannot make a run.

    Raises:
        ConfigError: the config is none or names a part that there is not, or the model is none.
    """
    if not isinstance(config, PDRConfig):
        raise ConfigError(
            f"config must be a PDRConfig, such as preset('pdr') returns, not {config!r}"
        )
    if not isinstance(model, BaseChatModel | ModelClient):
        raise ConfigError(
            "model must be a LangChain chat model, such as ChatVLLM(base_url=…, model=…), or a "
            f"ModelClient, not {model!r}"
        )
    extensions.check(config)


_SPEAKERS = {"human": "User", "ai": "Assistant", "tool": "Tool"}


def read_messages(state: Any) -> str:  # Any: the parent's own type of state
    """Return what the state's `messages` ask for.

    A single user message is the problem as it stands. System messages become instructions and
    earlier turns a transcript before it.

    Raises:
        ConfigError: the state has no `messages`, or none of a user with any text.
    """
    messages = state.get("messages") if isinstance(state, Mapping) else None
    messages = getattr(state, "messages", None) if messages is None else messages
    if messages is None:
        raise ConfigError(
            "the state has no `messages` to read the problem from; pass pdr_node(…, input=…) a "
            "function from the state to the problem"
        )
    return problem_of(convert_to_messages(messages))


def problem_of(messages: Sequence[BaseMessage]) -> str:
    """Return the text to be solved.

    Raises:
        ConfigError: no user has said anything.
    """
    said = [message for message in messages if message.text.strip()]
    turns = [message for message in said if not isinstance(message, SystemMessage)]
    if not any(message.type == "human" for message in turns):
        raise ConfigError("no user message has any text; state the task in one")
    rules = "\n\n".join(each.text.strip() for each in said if isinstance(each, SystemMessage))
    parts = [f"<instructions>\n{rules}\n</instructions>"] if rules else []
    last = turns[-1]
    earlier = turns[:-1] if last.type == "human" else turns
    if earlier:
        parts.append(f"<conversation>\n{_transcript(earlier)}\n</conversation>")
    if last.type != "human":
        task = "Go on with the conversation: write what the assistant says next."
    elif earlier:
        task = f"The user now says:\n{last.text.strip()}"
    else:
        task = last.text.strip()
    return "\n\n".join([*parts, task])


def as_message(result: Result) -> dict[str, Any]:  # Any: the parent's own type of update
    """Return an update that appends the solution to `messages`.

    Its `usage_metadata` is B_total, as a call of that size would have it; answer, verdict and
    ledger are in `response_metadata["pdr"]`.
    """
    rows = result.ledger.rows
    prompt = sum(row["prompt_tokens"] for row in rows)
    completion = sum(row["completion_tokens"] for row in rows)
    message = AIMessage(
        result.solution,
        usage_metadata=UsageMetadata(
            input_tokens=prompt,
            output_tokens=completion,
            total_tokens=prompt + completion,
            input_token_details=InputTokenDetails(
                cache_read=sum(row["cached_tokens"] for row in rows)
            ),
            output_token_details=OutputTokenDetails(
                reasoning=sum(row["reasoning_tokens"] for row in rows)
            ),
        ),
        response_metadata={"pdr": report(result)},
    )
    return {"messages": [message]}


def report(result: Result) -> dict[str, Any]:  # Any: plain JSON data
    """Return a run without its text, as plain data that any store keeps."""
    return {
        "preset": result.config.preset,
        "answer": result.answer,
        "verdict": dict(result.verdict),
        "ledger": result.ledger.to_json(),
        "notes": list(result.notes),
    }


def _transcript(turns: Sequence[BaseMessage]) -> str:
    return "\n\n".join(
        f"{_SPEAKERS.get(turn.type, turn.type.capitalize())}: {turn.text.strip()}" for turn in turns
    )
