"""A conversation as one problem: what the drafts, and all calls after them, are given to solve.

A single user message is the problem as it stands. System messages become instructions and earlier
turns a transcript before the task, in one text that every call of the run shares as its prefix.
"""

from collections.abc import Sequence

from pdr_graph.serve.protocol import Message
from pdr_graph.serve.refusal import RefusalError

_INSTRUCTING = {"system", "developer"}


def problem_of(messages: Sequence[Message]) -> str:
    """Return the text to be solved.

    Raises:
        RefusalError: no user has said anything.
    """
    said = [message for message in messages if message.text.strip()]
    turns = [message for message in said if message.role not in _INSTRUCTING]
    if not any(message.role == "user" for message in turns):
        raise RefusalError(
            400, "no user message has any text; state the task in one", param="messages"
        )
    rules = "\n\n".join(each.text.strip() for each in said if each.role in _INSTRUCTING)
    parts = [f"<instructions>\n{rules}\n</instructions>"] if rules else []
    last = turns[-1]
    earlier = turns[:-1] if last.role == "user" else turns
    if earlier:
        parts.append(f"<conversation>\n{_transcript(earlier)}\n</conversation>")
    if last.role != "user":
        task = "Go on with the conversation: write what the assistant says next."
    elif earlier:
        task = f"The user now says:\n{last.text.strip()}"
    else:
        task = last.text.strip()
    return "\n\n".join([*parts, task])


def _transcript(turns: Sequence[Message]) -> str:
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.text.strip()}" for turn in turns)
