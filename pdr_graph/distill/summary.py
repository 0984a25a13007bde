"""Global summary: one call writes notes that the whole next round shares (paper section 3)."""

from pdr_graph.answers import clusters
from pdr_graph.distill.candidates import candidates
from pdr_graph.distill.entry import Entry, numbered
from pdr_graph.step import Step


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
