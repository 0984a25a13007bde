"""Top-k: the model picks the k solutions worth reading (paper section 3).

`top_k` makes one pick that the next round shares; `top_k_per_sample` makes a pick of its own for
each next draft, over candidates in another order, so that the next drafts differ.
"""

from pdr_graph.distill.candidates import candidates, picked
from pdr_graph.distill.entry import Entry, numbered
from pdr_graph.step import Step
from pdr_graph.types import Draft


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
