"""Telling a draft's solution apart from the reasoning that led to it.

Only the solution part S goes into a workspace, never the reasoning R (paper section 3).
"""

from dataclasses import dataclass

from langchain_core.messages import AIMessage

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Parts:
    """One reply, taken apart."""

    thought: str
    solution: str
    closed: bool
    """False where the reply ended inside its thought, so that it has no solution."""


def split_message(message: AIMessage) -> Parts:
    """Take a message apart, whether the server separated the reasoning or the text holds it."""
    parts = split_text(message.text)
    reasoning = message.additional_kwargs.get("reasoning_content") or _reasoning_blocks(message)
    if not reasoning:
        return parts
    return Parts(f"{reasoning}{parts.thought}", parts.solution, parts.closed)


def split_text(text: str) -> Parts:
    r"""Split at the thought's tags.

    A template may open the thought in the prompt, so a closing tag alone ends one.

    >>> split_text("<think>2 + 2</think>\nIt is 4.")
    Parts(thought='2 + 2', solution='It is 4.', closed=True)
    """
    before, closing, after = text.rpartition(CLOSE)
    if closing and OPEN not in after:
        thought = before.strip().removeprefix(OPEN)
        return Parts(thought.strip(), after.strip(), True)
    head, opening, rest = (after if closing else text).partition(OPEN)
    if opening:
        # What came before a thought that never ended is no solution either: the model went on.
        return Parts(f"{before}{head}{rest}".strip(), "", False)
    return Parts("", text.strip(), True)


def _reasoning_blocks(message: AIMessage) -> str:
    if not isinstance(message.content, list):
        return ""
    blocks = [block for block in message.content if isinstance(block, dict)]
    return "".join(
        str(block.get("thinking") or block.get("reasoning") or "")
        for block in blocks
        if block.get("type") in {"thinking", "reasoning"}
    )
