"""Where the drafts agree and where they differ, read off their answers without a call.

A representative of each answer follows, the most common answer first.
"""

from pdr_graph.answers import clusters
from pdr_graph.distill.entry import Entry, draft_entry
from pdr_graph.distill.summary import tally
from pdr_graph.step import Step


async def consensus(step: Step) -> list[list[Entry]]:
    """Admit the tally of answers, then one draft for each of the k most common."""
    answers = [draft["answer"] for draft in step.drafts]
    groups = await clusters(step.answers, answers)
    line = await tally(step) or "No attempt reached a final answer."
    entries = [Entry(line, line)]
    # Drafts without an answer agree with nobody: each stands for itself.
    groups = groups or [[index] for index in range(len(answers))]
    for group in groups[: step.config.k]:
        draft = step.drafts[group[0]]
        title = f"An attempt that reaches {draft['answer']} ({len(group)} do):"
        entries.append(draft_entry(draft, title=title if draft["answer"] else "An attempt:"))
    return [entries]
