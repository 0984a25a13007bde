"""Drafts laid out in a prompt, and the choice read out of the reply."""

import re
from collections.abc import Sequence

from pdr_graph.clip import clip
from pdr_graph.distill.entry import draft_entry
from pdr_graph.step import Step
from pdr_graph.types import Draft

_BEST = re.compile(r"best\W{1,8}((?:\d{1,4}[^\w\n]{0,8})+)", re.IGNORECASE)


async def candidates(step: Step, drafts: Sequence[Draft]) -> str:
    """Return drafts as numbered blocks, each cut so that all fit the model's window."""
    limit = step.candidate_tokens(len(drafts))
    blocks = []
    for number, draft in enumerate(drafts, start=1):
        entry = draft_entry(draft)
        text = await clip(entry.text, limit, step.counter, keep=entry.keep)
        blocks.append(f"<candidate {number}>\n{text}\n</candidate {number}>")
    return "\n\n".join(blocks)


def picked(reply: str, count: int) -> list[int]:
    """Read the last `Best: 3, 1` line as positions from 0; empty if the reply names none.

    >>> picked("Both agree. Best: 3, 1", 4)
    [2, 0]
    """
    lines = _BEST.findall(reply[-2000:])
    if not lines:
        return []
    numbers = [int(number) - 1 for number in re.findall(r"\d+", lines[-1])]
    return list(dict.fromkeys(number for number in numbers if 0 <= number < count))
