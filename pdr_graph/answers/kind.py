"""What an answer is, for one kind of question."""

from __future__ import annotations

from typing import Protocol


class AnswerKind(Protocol):
    """Finds the final answer in a solution, and tells which answers are the same."""

    @property
    def name(self) -> str:
        """What it is called in a config."""

    @property
    def has_short_answer(self) -> bool:
        """Whether solutions end in something that can be counted and voted on."""

    def extract(self, solution: str) -> str | None:
        """Return the final answer of a solution part; None if it states none.

        It is pure and fast, and raises for no text at all.
        """

    async def same(self, left: str, right: str) -> bool:
        """Tell whether two extracted answers are equivalent, without holding up the event loop."""
