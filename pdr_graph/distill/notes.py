"""Workspaces of text about the drafts: the model's notes, or the answers that drafts reach.

`summary` is the paper's global summary (section 3), `critique` is SR with error analysis, `answers`
is PaCoRe's workspace (2601.05593), here bounded by kappa. `tail` is Markovian RSA's (2605.05365).
`evidence`, `contested` and `trusted` show each answer once, with the best solution that reaches it.
"""

import re
from dataclasses import replace

from pdr_graph.answers import clusters
from pdr_graph.ballot import is_weighed, ranked
from pdr_graph.distill.selection import candidates
from pdr_graph.distill.workspace import Entry, draft_entry, numbered
from pdr_graph.llm.tokens import clip
from pdr_graph.step import Step, closing_line
from pdr_graph.types import Draft, Vote

CLEAR = 0.5
"""Share of all weight at which one answer has a clear plurality."""
RARE = 0.15
"""Share of all weight below which an answer is left out if another has a clear plurality."""
TRUSTED = 0.5
"""Weight above which a draft is more likely right than wrong."""


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


async def evidence(step: Step) -> list[list[Entry]]:
    """Admit the best solution of each answer with its votes, strongest first, while κ lasts.

    It makes no call. Where rounds are pooled, the drafts of all of them are the evidence. If one
    answer has a clear plurality, answers of little weight are left out.
    """
    tally = await step.ballot()
    order = ranked(tally)
    if not order:
        return [numbered(await step.by_agreement())]
    whole = sum(weight for _, weight in order) or 1.0  # if the judge trusts no draft at all
    clear = order[0][1] >= CLEAR * whole
    admitted = [vote for vote, weight in order if not clear or weight >= RARE * whole]
    shares = {vote["answer"]: weight / whole for vote, weight in order}
    entries = []
    for vote in admitted:
        weight = f", weight {shares[vote['answer']]:.2f} of 1" if is_weighed(tally) else ""
        reached = f"{vote['count']} of {tally['voters']} attempts{weight}"
        entries.append(_best(vote, step, f"The answer {vote['answer']}, reached by {reached}:"))
    return [await _while_they_fit(entries, step)]


async def contested(step: Step) -> list[list[Entry]]:
    """Admit the best solution of each of the k answers that are ahead, in random order.

    It makes no call, and states no votes. It is for drafts that disagree: if they agree,
    `stop_on_consensus` or `guarded` asks for nothing more.
    """
    order = ranked(await step.ballot())[: max(2, step.config.k)]
    if not order:
        return [numbered(await step.by_agreement())]
    step.rng.shuffle(order)
    numbers = range(1, len(order) + 1)
    return [
        [_best(vote, step, f"Attempt {n}:") for n, (vote, _) in zip(numbers, order, strict=True)]
    ]


async def trusted(step: Step) -> list[list[Entry]]:
    """Admit the best solution of each answer that the judge trusts, strongest first; no call.

    A solution is trusted if its weight is above `TRUSTED`. If no solution is, nothing is admitted,
    and the next drafts start afresh.
    """
    tally = await step.ballot()
    order = ranked(tally)
    if order and not is_weighed(tally):
        note = "no draft could be weighed, so none is trusted"
        if note not in step.notes:
            step.notes.append(note)
    good = [vote for vote, _ in order if vote.get("best_weight", 0.0) > TRUSTED]
    entries = [_best(vote, step, f"Attempt {n}:") for n, vote in enumerate(good, start=1)]
    return [await _while_they_fit(entries, step) if entries else []]


def _best(vote: Vote, step: Step, title: str) -> Entry:
    """Return the best solution of an answer; its source is named if it is of this round."""
    of_round, index = vote.get("source", (0, 0))
    sources = (index,) if step.drafts and of_round == step.drafts[0]["round"] else ()
    return Entry(vote["solution"], closing_line(vote["answer"]), sources, title)


async def _while_they_fit(entries: list[Entry], step: Step) -> list[Entry]:
    """Return the first entries that fit into κ whole; the first one is cut if it must be."""
    left, admitted = step.config.kappa, 0
    for entry in entries:
        left -= await step.counter.count(f"{entry.title}\n{entry.text}\n\n")
        if left < 0:
            break
        admitted += 1
    return entries[: max(1, admitted)]


async def tail(step: Step) -> list[list[Entry]]:
    """Admit the end of each draft's solution, in equal shares of κ; no call (Markovian RSA)."""
    share = max(1, step.config.kappa // len(step.drafts))
    entries = []
    for number, draft in enumerate(step.drafts, start=1):
        entry = draft_entry(draft, title=f"End of attempt {number}:")
        room = share - 4 - await step.counter.count(entry.title)
        text = await clip(entry.text, max(0, room), step.counter, end=True)
        entries.append(replace(entry, text=text))
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
