"""No verifier: the solution stands unjudged."""

from pdr_graph.step import Step
from pdr_graph.types import Verdict


async def none(step: Step) -> Verdict:
    """Judge nothing."""
    return Verdict(verifier="none", accepted=None, reason="not verified")
