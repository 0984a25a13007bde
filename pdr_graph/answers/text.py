"""Answers that are the solution itself: essays, code, proofs."""

from __future__ import annotations


class TextAnswers:
    """Has no short answer, so that nothing can be counted or voted on."""

    name = "text"
    has_short_answer = False

    def extract(self, solution: str) -> str | None:
        """Return None: no part of a solution is its answer."""
        return None

    async def same(self, left: str, right: str) -> bool:
        """Compare two texts by their words."""
        return left.strip() == right.strip()
