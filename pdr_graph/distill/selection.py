"""Drafts laid out in a prompt, and the choice read out of the reply.

Sequential Refinement's workspace: the previous answer and nothing else (paper section 3).

Nothing is carried over: every round starts afresh, and rounds only add votes.

With `pool_rounds` and `stop_on_consensus` this is Adaptive-Consistency (arXiv 2305.11860). A model
too weak to check its own drafts is misled by reading them.

Random-k: a fresh random k of the drafts for each next draft, without a call.

The paper's bootstrapped distiller (section 3), and RSA's population step (2509.26626).

Top-k: the model picks the k solutions worth reading (paper section 3).

`top_k` makes one pick that the next round shares; `top_k_per_sample` makes a pick of its own for
each next draft, over candidates in another order, so that the next drafts differ.

Pairwise picks until k solutions are left (RTV, 2604.16529).
"""

import re
from collections.abc import Sequence

from pdr_graph.distill.workspace import Entry, draft_entry, numbered
from pdr_graph.llm.tokens import clip
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


async def latest(step: Step) -> list[list[Entry]]:
    """Admit the last usable draft."""
    return [[draft_entry(step.drafts[-1])]]


async def none(step: Step) -> list[list[Entry]]:
    """Admit nothing: the next drafts read the problem alone."""
    return [[]]


async def random_k(step: Step) -> list[list[Entry]]:
    """Admit k drafts drawn without replacement, anew for each next draft."""
    drafts = list(step.drafts)
    k = min(step.config.k, len(drafts))
    return [numbered(step.rng.sample(drafts, k)) for _ in range(step.next_width)]


async def top_k(step: Step) -> list[list[Entry]]:
    """Admit one pick of k, shared by the next round."""
    return await _picks(step, [list(step.drafts)])


async def top_k_per_sample(step: Step) -> list[list[Entry]]:
    """Admit a separate pick of k for each next draft."""
    orders = []
    for _ in range(step.next_width):
        order = list(step.drafts)
        step.rng.shuffle(order)
        orders.append(order)
    return await _picks(step, orders)


def calls_per_sample(width: int, next_width: int, k: int) -> int:
    """Plan one call for each next draft."""
    return next_width


async def _picks(step: Step, orders: list[list[Draft]]) -> list[list[Entry]]:
    k = step.config.k
    if len(step.drafts) <= k:
        return [numbered(order) for order in orders]
    replies = await step.ask.each(
        "top_k",
        [
            {"problem": step.problem, "candidates": await candidates(step, order), "k": k}
            for order in orders
        ],
    )
    ranked = await step.by_agreement()
    picks = []
    for order, reply in zip(orders, replies, strict=True):
        chosen = [order[position] for position in picked(reply.solution, len(order))][:k]
        # A model that names fewer than k is completed by what most drafts agree on.
        chosen += [draft for draft in ranked if draft not in chosen][: k - len(chosen)]
        picks.append(numbered(chosen))
    return picks


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
