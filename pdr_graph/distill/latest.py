"""Sequential Refinement's workspace: the previous answer and nothing else (paper section 3)."""

from pdr_graph.distill.entry import Entry, draft_entry
from pdr_graph.step import Step


async def latest(step: Step) -> list[list[Entry]]:
    """Admit the last usable draft."""
    return [[draft_entry(step.drafts[-1])]]
