"""Where the run goes next, read off the state alone.

Routers take no runtime: LangGraph evaluates them again when a state is edited (`update_state`,
Studio's fork), where there is none.
"""

from typing import Literal

from langgraph.types import Send

from pdr_graph.state import PDRState, missing_drafts, rounds_left


def after_plan(state: PDRState) -> list[Send] | Literal["refiner"]:
    """Send one drafter for every draft that the round still owes, or finish."""
    if state["phase"] != "draft":
        return "refiner"
    return [Send("drafter", task) for task in missing_drafts(state)]


def after_distiller(state: PDRState) -> Literal["plan", "refiner"]:
    """Plan the next round while there is one and the drafts have not agreed."""
    if state.get("consensus") is None and rounds_left(state) > 0:
        return "plan"
    return "refiner"


def after_verifier(state: PDRState) -> Literal["plan", "__end__"]:
    """Go back for another round if the verifier granted one."""
    return "plan" if state["phase"] == "draft" else "__end__"
