"""How a round of drafts becomes the workspace of the next."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from pdr_graph.distill import notes, selection
from pdr_graph.distill.workspace import Entry, draft_entry
from pdr_graph.step import Step, outcome, returned_wrongly

Piece = Entry | str
"""One piece of a workspace; a text may be cut anywhere."""

Distilled = str | Sequence[Piece] | Sequence[Sequence[Piece]]
"""What a distiller may return: a text or a flat list of pieces is one shared workspace; a list of
lists is that many workspaces."""

Distil = Callable[[Step], Awaitable[Sequence[Sequence[Entry]]]]
"""Turns a round of drafts into the entries of one shared workspace, or of `next_width` workspaces.

A distiller may return as much as it likes: its caller keeps the bound kappa."""

OwnDistil = Callable[[Step], Awaitable[Distilled]] | Callable[[Step], Distilled]
"""A distiller of the user's own; a plain function is called in a thread."""

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
    """Plan one call for each draft that the tournament eliminates."""
    return max(0, width - k)


@dataclass(frozen=True, slots=True)
class Distiller:
    """A way to compress drafts, and what it may cost."""

    distil: Distil
    max_calls: MaxCalls = one_call


_EXPECTED = (
    "a text, a list of texts or of entries such as draft_entry(draft), or a list of such lists, "
    "one for each workspace"
)


def own_distil(name: str, function: OwnDistil) -> Distil:
    """Return a distiller of the user's own in the form of the built-in ones.

    It raises `StepError` where the function raises an error, or returns no `Distilled`.
    """

    async def distil(step: Step) -> list[list[Entry]]:
        returned = await outcome("distiller", name, function, step)
        lists = [returned] if isinstance(returned, Piece) else _listed(name, returned)
        if lists and all(isinstance(each, Piece) for each in lists):
            lists = [lists]
        return [[_entry(name, piece) for piece in _listed(name, each)] for each in lists]

    return distil


def _listed(name: str, value: object) -> Sequence[object]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    raise returned_wrongly("distiller", name, value, _EXPECTED)


def _entry(name: str, piece: object) -> Entry:
    if isinstance(piece, Piece):
        return Entry(piece) if isinstance(piece, str) else piece
    raise returned_wrongly("distiller", name, piece, _EXPECTED)


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
    "Distilled",
    "Distiller",
    "Entry",
    "MaxCalls",
    "OwnDistil",
    "Piece",
    "draft_entry",
    "no_calls",
    "one_call",
    "own_distil",
]
