"""What a distiller is."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pdr_graph.distill.entry import Entry
from pdr_graph.step import Step

Distil = Callable[[Step], Awaitable[Sequence[Sequence[Entry]]]]
"""Turns a round of drafts into the entries of one shared workspace, or of `next_width` of them.

The bound kappa is held by the caller, so a distiller may return as much as it likes."""

MaxCalls = Callable[[int, int, int], int]
"""The most model calls for (M_r, next_width, k); budgets are planned with it."""


def no_calls(width: int, next_width: int, k: int) -> int:
    """Plan for a distiller that never asks the model."""
    return 0


def one_call(width: int, next_width: int, k: int) -> int:
    """Plan for a distiller that asks once."""
    return 1


@dataclass(frozen=True, slots=True)
class Distiller:
    """A way to compress drafts, and what it may cost."""

    distil: Distil
    max_calls: MaxCalls = one_call
