"""A verifier that asks a person, for the commands that name it by its import path."""

from langgraph.types import interrupt

from pdr_graph.step import Step
from pdr_graph.types import Verdict


async def person(step: Step) -> Verdict:
    """Accept what a person calls good."""
    said = interrupt("Is the solution good?")
    return Verdict(verifier="person", accepted=said == "yes", reason=f"a person said {said}")
