"""Global summary: one call writes notes that the whole next round shares (paper section 3).

SR with error analysis: the flaws of the previous answer are listed before it is rewritten.

Where the drafts agree and where they differ, read off their answers without a call.

A representative of each answer follows, the most common answer first.

PaCoRe's workspace: the final-answer segment of every draft, shuffled (2601.05593).

Unlike there it is bounded by kappa like any other.
"""

import re

from pdr_graph.answers import clusters
from pdr_graph.distill.selection import candidates
from pdr_graph.distill.workspace import Entry, draft_entry, numbered
from pdr_graph.step import Step
from pdr_graph.types import Draft


async def summary(step: Step) -> list[list[Entry]]:
    """Have the model note agreements, contradictions, results and what is open."""
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
    """Return a line with each answer and how many drafts reach it; empty without answers."""
    answers = [draft["answer"] for draft in step.drafts]
    groups = await clusters(step.answers, answers)
    counted = [f"{answers[group[0]]} ({len(group)} of {len(answers)})" for group in groups]
    return f"Answers reached: {'; '.join(counted)}" if counted else ""


def words_of(tokens: int) -> int:
    """Return how many words fit in `tokens`, at about 3 words to 4 tokens, with room to spare."""
    return max(10, tokens * 3 // 5)


async def critique(step: Step) -> list[list[Entry]]:
    """Admit the last usable draft together with the flaws that the model finds in it."""
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
