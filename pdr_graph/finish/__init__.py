"""How a run ends: one file each, one line below."""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from pdr_graph.finish.refine import refine
from pdr_graph.finish.select import select
from pdr_graph.finish.vote import vote
from pdr_graph.step import Step
from pdr_graph.types import Solution

Finish = Callable[[Step], Awaitable[Solution]]
"""Turns the last workspace, or the last drafts, into the solution."""

FINISHES: Mapping[str, Finish] = MappingProxyType(
    {"refine": refine, "vote": vote, "select": select}
)

DRAFT_FINISHES = frozenset({"vote", "select"})
"""Finishes that read the last drafts themselves, so that those need no distilling."""

__all__ = ["DRAFT_FINISHES", "FINISHES", "Finish"]
