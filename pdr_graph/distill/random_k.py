"""Random-k: a fresh random k of the drafts for each next draft, without a call.

The paper's bootstrapped distiller (section 3), and RSA's population step (2509.26626).
"""

from pdr_graph.distill.entry import Entry, numbered
from pdr_graph.step import Step


async def random_k(step: Step) -> list[list[Entry]]:
    """Admit k drafts drawn without replacement, anew for each next draft."""
    drafts = list(step.drafts)
    k = min(step.config.k, len(drafts))
    return [numbered(step.rng.sample(drafts, k)) for _ in range(step.next_width)]
