"""Pairwise picks until k solutions are left (RTV, 2604.16529)."""

from pdr_graph.distill.candidates import candidates, picked
from pdr_graph.distill.entry import Entry, numbered
from pdr_graph.step import Step


async def tournament(step: Step) -> list[list[Entry]]:
    """Admit the k drafts that survive; the matches of one stage are played side by side."""
    left = list(step.drafts)
    step.rng.shuffle(left)
    k = step.config.k
    while len(left) > k:
        matches = min(len(left) // 2, len(left) - k)
        pairs = [left[2 * match : 2 * match + 2] for match in range(matches)]
        replies = await step.ask.each(
            "compare",
            [{"problem": step.problem, "candidates": await candidates(step, p)} for p in pairs],
        )
        # A reply that names neither leaves the first, whose place in the pair was drawn by lot.
        winners = [
            pair[next(iter(picked(reply.solution, 2)), 0)]
            for pair, reply in zip(pairs, replies, strict=True)
        ]
        left = winners + left[2 * matches :]
    return [numbered(left)]


def calls_of_tournament(width: int, next_width: int, k: int) -> int:
    """Plan one call for each draft that has to go."""
    return max(0, width - k)
