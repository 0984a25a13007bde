"""Workspaces of whole drafts: the latest, none, a random k, or those that the model picks.

`latest`, `random_k` and `top_k` are the paper's (section 3); `random_k` for each next draft is also
RSA's population step (2509.26626). `tournament` is RTV's pairwise selection (2604.16529).
"""

import re
from collections.abc import Sequence

from pdr_graph.distill.workspace import Entry, draft_entry, numbered
from pdr_graph.llm.tokens import clip
from pdr_graph.step import Step
from pdr_graph.types import Draft

_BEST = re.compile(r"best\W{1,8}((?:\d{1,4}[^\w\n]{0,8})+)", re.IGNORECASE)


async def candidates(step: Step, drafts: Sequence[Draft]) -> str:
    """Return drafts as numbered blocks of a prompt, cut so that all fit the model's window."""
    limit = step.candidate_tokens(len(drafts))
    blocks = []
    for number, draft in enumerate(drafts, start=1):
        entry = draft_entry(draft)
        text = await clip(entry.text, limit, step.ask.client.counter, keep=entry.keep)
        blocks.append(f"<candidate {number}>\n{text}\n</candidate {number}>")
    return "\n\n".join(blocks)


def picked(reply: str, count: int) -> list[int]:
    """Read the last `Best: 3, 1` line of a reply as positions from 0; empty without one.

    >>> picked("Both agree. Best: 3, 1", 4)
    [2, 0]
    """
    lines = _BEST.findall(reply[-2000:])
    if not lines:
        return []
    numbers = [int(number) - 1 for number in re.findall(r"\d+", lines[-1])]
    return list(dict.fromkeys(number for number in numbers if 0 <= number < count))


async def latest(step: Step) -> list[list[Entry]]:
    """Admit the last usable draft, as Sequential Refinement does; no call."""
    return [[draft_entry(step.drafts[-1])]]


async def none(step: Step) -> list[list[Entry]]:
    """Admit nothing: every round starts afresh and only adds votes; no call.

    With `pool_rounds` and `stop_on_consensus` this is Adaptive-Consistency (2305.11860). It suits
    models that are misled by drafts which they cannot check.
    """
    return [[]]


async def random_k(step: Step) -> list[list[Entry]]:
    """Admit k random drafts, drawn anew for each next draft; no call."""
    drafts = list(step.drafts)
    k = min(step.config.k, len(drafts))
    return [numbered(step.rng.sample(drafts, k)) for _ in range(step.next_width)]


async def top_k(step: Step) -> list[list[Entry]]:
    """Let the model pick k drafts, which the next round shares."""
    return await _picks(step, [list(step.drafts)])


async def top_k_per_sample(step: Step) -> list[list[Entry]]:
    """Let the model pick k drafts for each next draft, each time from candidates in a new order."""
    orders = []
    for _ in range(step.next_width):
        order = list(step.drafts)
        step.rng.shuffle(order)
        orders.append(order)
    return await _picks(step, orders)


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
        # Where the model names fewer than k, the most agreed drafts complete them.
        chosen += [draft for draft in ranked if draft not in chosen][: k - len(chosen)]
        picks.append(numbered(chosen))
    return picks


async def tournament(step: Step) -> list[list[Entry]]:
    """Admit the k drafts that survive pairwise picks; a stage's matches run in parallel."""
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
        # Where the reply names neither, the first wins: their order is random.
        winners = [
            pair[next(iter(picked(reply.solution, 2)), 0)]
            for pair, reply in zip(pairs, replies, strict=True)
        ]
        left = winners + left[2 * matches :]
    return [numbered(left)]
