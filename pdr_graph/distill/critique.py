"""SR with error analysis: the flaws of the previous answer are listed before it is rewritten."""

from pdr_graph.distill.candidates import candidates
from pdr_graph.distill.entry import Entry, draft_entry
from pdr_graph.distill.summary import words_of
from pdr_graph.step import Step


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
