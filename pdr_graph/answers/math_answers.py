"""Answers that are mathematics: a number, a formula, a set."""

from __future__ import annotations

from pdr_graph.answers.checker import Checker
from pdr_graph.answers.extract import final_answer


class MathAnswers:
    """Reads a box or an answer line; equivalence is mathematical."""

    name = "math"
    has_short_answer = True

    def __init__(self, checker: Checker | None = None) -> None:
        self.checker = checker or Checker()
        """Starts no process before an answer needs one."""

    def extract(self, solution: str) -> str | None:
        """Return the content of the last box, or of the last line that states an answer."""
        return final_answer(solution)

    async def same(self, left: str, right: str) -> bool:
        """Tell whether two answers are mathematically equivalent."""
        return await self.checker.same(left, right)

    def close(self) -> None:
        """End the checker's processes. Not needed before exit."""
        self.checker.close()
