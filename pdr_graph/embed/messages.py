"""A conversation as one problem, and a result as its next message."""

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, convert_to_messages
from langchain_core.messages.ai import InputTokenDetails, OutputTokenDetails, UsageMetadata

from pdr_graph.errors import ConfigError
from pdr_graph.result import Result

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
