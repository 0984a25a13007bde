"""A conversation as one problem: the text that the drafts, and all calls after them, are to solve.

A single user message is the problem as it stands. System messages become instructions and earlier
turns a transcript before the task, in one text that all calls of the run share as their prefix.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pdr_graph.errors import ConfigError

_INSTRUCTING = frozenset({"system", "developer"})


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system` or `developer` for instructions, `user`, `assistant`, or any other speaker."""
    text: str


def problem_of(turns: Sequence[Turn]) -> str:
    """Return the text to be solved.

    Raises:
        ConfigError: no user has said anything.
    """
    said = [Turn(each.role, each.text.strip()) for each in turns if each.text.strip()]
    rules = [each.text for each in said if each.role in _INSTRUCTING]
    spoken = [each for each in said if each.role not in _INSTRUCTING]
    if not any(each.role == "user" for each in spoken):
        raise ConfigError("no user message has any text; state the task in one")
    last = spoken[-1]
    earlier = spoken[:-1] if last.role == "user" else spoken
    parts = []
    if rules:
        parts.append("<instructions>\n" + "\n\n".join(rules) + "\n</instructions>")
    if earlier:
        lines = [f"{each.role.capitalize()}: {each.text}" for each in earlier]
        parts.append("<conversation>\n" + "\n\n".join(lines) + "\n</conversation>")
    if last.role != "user":
        parts.append("Go on with the conversation: write what the assistant says next.")
    elif earlier:
        parts.append(f"The user now says:\n{last.text}")
    else:
        parts.append(last.text)
    return "\n\n".join(parts)
