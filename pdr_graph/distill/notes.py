"""Workspaces of text about the drafts: the model's notes, or the answers that drafts reach.

`summary` is the paper's global summary (section 3), `critique` is SR with error analysis, `answers`
is PaCoRe's workspace (2601.05593), here bounded by kappa.
"""

import re
from dataclasses import replace

from pdr_graph.answers import clusters
from pdr_graph.distill.selection import candidates
from pdr_graph.distill.workspace import Entry, draft_entry, numbered
from pdr_graph.step import Step
from pdr_graph.types import Draft


async def summary(step: Step) -> list[list[Entry]]:
    """Let the model note agreements, contradictions, results and open points in one call."""
    drafts = list(step.drafts)
    reply = await step.ask.one(
        "summary",
        problem=step.problem,
        candidates=await candidates(step, drafts),
        words=words_of(step.config.kappa),
    )
    if not reply.solution:
        step.notes.append(
            f"round {drafts[0]['round']}: the model wrote no summary; the most agreed drafts "
            "stand in for it"
        )
        return [numbered(await step.by_agreement())]
    sources = tuple(draft["index"] for draft in drafts)
    return [[Entry(reply.solution, await tally(step), sources)]]


async def tally(step: Step) -> str:
    """Return a line with each answer and its number of drafts; empty without answers."""
    answers = [draft["answer"] for draft in step.drafts]
    groups = await clusters(step.answers, answers)
    counted = [f"{answers[group[0]]} ({len(group)} of {len(answers)})" for group in groups]
    return f"Answers reached: {'; '.join(counted)}" if counted else ""


def words_of(tokens: int) -> int:
    """Return how many words surely fit in `tokens`; 4 tokens are about 3 words."""
    return max(10, tokens * 3 // 5)


async def critique(step: Step) -> list[list[Entry]]:
    """Admit the last usable draft and the flaws that the model finds in it."""
    draft = step.drafts[-1]
    reply = await step.ask.one(
        "critique",
        problem=step.problem,
        candidates=await candidates(step, [draft]),
        words=words_of(step.config.kappa // 2),
    )
    entries = [draft_entry(draft, title="Attempt:")]
    if reply.solution:
        entries.append(Entry(reply.solution, title="Its flaws:"))
    return [entries]


async def consensus(step: Step) -> list[list[Entry]]:
    """Admit the tally of answers, then one draft for each of the k most common; no call."""
    answers = [draft["answer"] for draft in step.drafts]
    groups = await clusters(step.answers, answers)
    line = await tally(step) or "No attempt reached a final answer."
    entries = [Entry(line, line)]
    # Without any answer, each draft stands for itself.
    groups = groups or [[index] for index in range(len(answers))]
    for group in groups[: step.config.k]:
        draft = step.drafts[group[0]]
        title = f"An attempt that reaches {draft['answer']} ({len(group)} do):"
        entries.append(draft_entry(draft, title=title if draft["answer"] else "An attempt:"))
    return [entries]


async def answers(step: Step) -> list[list[Entry]]:
    """Admit the conclusion of each draft, in random order; no call."""
    drafts = list(step.drafts)
    step.rng.shuffle(drafts)
    return [[_conclusion(draft) for draft in drafts]]


def _conclusion(draft: Draft) -> Entry:
    """Return the last paragraph, and the final answer if that paragraph does not state it."""
    entry = draft_entry(draft, title="Conclusion of an attempt:")
    last = entry.text.rstrip().rpartition("\n\n")[2].strip()
    answer = draft["answer"]
    stated = not answer or re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", last)
    return replace(entry, text=last if stated else f"{last}\n{entry.keep}")
