"""Answers that are one of the options A to J."""

from __future__ import annotations

import re

from pdr_graph.answers.extract import boxed_answer, stated_answer, without_thought

_WRAPPING = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{|[{}$*\\]")
_LETTER = re.compile(r"(?i:option|choice|answer)?\s*\(?([A-J])(?:\)|(?![\w'])).*", re.DOTALL)


class ChoiceAnswers:
    """Reads the letter of the option that a solution names."""

    name = "choice"
    has_short_answer = True

    def extract(self, solution: str) -> str | None:
        """Return the letter in the last box, or of the last line that states an answer."""
        text = without_thought(solution)
        if text is None:
            return None
        return _letter(boxed_answer(text)) or _letter(stated_answer(text))

    async def same(self, left: str, right: str) -> bool:
        """Compare two letters."""
        return left == right


def _letter(answer: str | None) -> str | None:
    r"""Return the option that an answer such as `\textbf{(B)}\ 25` begins with."""
    found = _LETTER.match(_WRAPPING.sub(" ", answer or "").strip())
    return found.group(1) if found else None
