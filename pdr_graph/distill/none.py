"""Nothing is carried over: every round starts afresh, and rounds only add votes.

With `pool_rounds` and `stop_on_consensus` this is Adaptive-Consistency (arXiv 2305.11860). A model
too weak to check its own drafts is misled by reading them.
"""

from pdr_graph.distill.entry import Entry
from pdr_graph.step import Step


async def none(step: Step) -> list[list[Entry]]:
    """Admit nothing: the next drafts read the problem alone."""
    return [[]]
