"""A conversation as one problem: the text that the drafts, and all calls after them, are to solve.

A single user message is the problem as it stands. System messages become instructions and earlier
turns a transcript before the task, in one text that all calls of the run share as their prefix.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pdr_graph.errors import ConfigError

_INSTRUCTING = frozenset({"system", "developer"})


_RULES, _AFTER_RULES = "<instructions>\n", "\n</instructions>"
_SAID, _AFTER_SAID = "<conversation>\n", "\n</conversation>"
_NOW = "The user now says:\n"
_GO_ON = "Go on with the conversation: write what the assistant says next."


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
        parts.append(_RULES + "\n\n".join(rules) + _AFTER_RULES)
    if earlier:
        lines = [f"{each.role.capitalize()}: {each.text}" for each in earlier]
        parts.append(_SAID + "\n\n".join(lines) + _AFTER_SAID)
    if last.role != "user":
        parts.append(_GO_ON)
    elif earlier:
        parts.append(_NOW + last.text)
    else:
        parts.append(last.text)
    return "\n\n".join(parts)


def turns_of(problem: str, *, skip: int = 0) -> list[Turn]:
    """Return the turns of a text that `problem_of` made of several, so that more can follow.

    Args:
        problem: That text; a single message as it stands is not one.
        skip: Characters at the beginning of its instructions that are left out.
    """
    rules, said, last = "", "", problem
    if last.startswith(_RULES):
        inside = last.removeprefix(_RULES)
        end = inside.index(f"{_AFTER_RULES}\n\n", skip)
        rules, last = inside[:end], inside[end:].removeprefix(f"{_AFTER_RULES}\n\n")
    if last.startswith(_SAID):
        said, _, last = last.removeprefix(_SAID).rpartition(f"{_AFTER_SAID}\n\n")
    turns = [Turn("system", rules[skip:])] if rules[skip:].strip() else []
    # Wherever a user's own paragraph reads like a turn, it is put together again as it was.
    pieces = re.split(r"(?:^|\n\n)([A-Z][a-z_]*): ", said)[1:]
    turns += [Turn(role.lower(), text) for role, text in zip(*[iter(pieces)] * 2, strict=True)]
    if last != _GO_ON or not said:
        turns.append(Turn("user", last.removeprefix(_NOW) if said else last))
    return turns
