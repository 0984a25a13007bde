"""How a round of drafts becomes the workspace of the next."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pdr_graph.distill import notes, selection
from pdr_graph.distill.workspace import Entry, draft_entry
from pdr_graph.step import Step

Distil = Callable[[Step], Awaitable[Sequence[Sequence[Entry]]]]
"""Turns a round of drafts into the entries of one shared workspace, or of `next_width` workspaces.

A distiller may return as much as it likes: its caller keeps the bound kappa."""

MaxCalls = Callable[[int, int, int], int]
"""The most model calls for (M_r, next_width, k); budgets are planned with it."""


def no_calls(width: int, next_width: int, k: int) -> int:
    """Plan no model call."""
    return 0


def one_call(width: int, next_width: int, k: int) -> int:
    """Plan one model call."""
    return 1


def _calls_per_draft(width: int, next_width: int, k: int) -> int:
    """Plan one call for each next draft."""
    return next_width


def _calls_of_tournament(width: int, next_width: int, k: int) -> int:
    """Plan one call for each draft that is left out."""
    return max(0, width - k)


@dataclass(frozen=True, slots=True)
class Distiller:
    """A way to compress drafts, and what it may cost."""

    distil: Distil
    max_calls: MaxCalls = one_call


DISTILLERS: Mapping[str, Distiller] = MappingProxyType(
    {
        "summary": Distiller(notes.summary),
        "top_k": Distiller(selection.top_k),
        "top_k_per_sample": Distiller(selection.top_k_per_sample, _calls_per_draft),
        "random_k": Distiller(selection.random_k, no_calls),
        "latest": Distiller(selection.latest, no_calls),
        "critique": Distiller(notes.critique),
        "answers": Distiller(notes.answers, no_calls),
        "consensus": Distiller(notes.consensus, no_calls),
        "evidence": Distiller(notes.evidence, no_calls),
        "contested": Distiller(notes.contested, no_calls),
        "trusted": Distiller(notes.trusted, no_calls),
        "tail": Distiller(notes.tail, no_calls),
        "none": Distiller(selection.none, no_calls),
        "tournament": Distiller(selection.tournament, _calls_of_tournament),
    }
)
"""Distillers by the name that a config gives."""

__all__ = [
    "DISTILLERS",
    "Distil",
    "Distiller",
    "Entry",
    "MaxCalls",
    "draft_entry",
    "no_calls",
    "one_call",
]
