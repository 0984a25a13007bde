"""PaCoRe's workspace: the final-answer segment of every draft, shuffled (2601.05593).

Unlike there it is bounded by kappa like any other.
"""

import re

from pdr_graph.distill.entry import Entry
from pdr_graph.step import Step
from pdr_graph.types import Draft


async def answers(step: Step) -> list[list[Entry]]:
    """Admit what each draft concludes, in random order."""
    drafts = list(step.drafts)
    step.rng.shuffle(drafts)
    return [[_conclusion(draft) for draft in drafts]]


def _conclusion(draft: Draft) -> Entry:
    """Return the last paragraph, with the final answer if that paragraph does not state it."""
    last = draft["solution"].rstrip().rpartition("\n\n")[2].strip()
    answer = draft["answer"]
    line = f"Final answer: {answer}" if answer else ""
    stated = answer and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", last)
    text = last if stated or not answer else f"{last}\n{line}"
    return Entry(text, line, (draft["index"],), "Conclusion of an attempt:")
