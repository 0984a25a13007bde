"""Answers that are one of the options A to J."""

from __future__ import annotations

import re

from pdr_graph.answers.extract import boxed_answer, stated_answer, without_thought

_WRAPPING = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{|[{}$*\\]")
_LETTER = re.compile(
    r"(?i:option|choice|answer)? \s* (?: \(([A-J])\) | ([A-J]) (?: [).:,] | \s+(?![a-z]) | $ ))",
    re.VERBOSE,
)
_ALONE = re.compile(r"\(?([a-j])\)?")
# A second option: the question had one.
_MORE = re.compile(r"\s*(?:,|;|&|/|and\b|or\b)\s*\(?[A-J](?![\w'])")


class ChoiceAnswers:
    """Reads the letter of the option that a solution names."""

    name = "choice"
    has_short_answer = True

    def extract(self, solution: str) -> str | None:
        """Return the letter in the last box, or of the last line that states an answer."""
        text = without_thought(solution)
        if text is None:
            return None
        boxed = boxed_answer(text) or ""
        if alone := _ALONE.fullmatch(_WRAPPING.sub("", boxed).strip()):
            return alone.group(1).upper()
        return _letter(boxed) or _letter(stated_answer(text) or "")

    async def same(self, left: str, right: str) -> bool:
        """Compare two letters."""
        return left == right


def _letter(answer: str) -> str | None:
    r"""Return the option that an answer such as `\textbf{(B)}\ 25` begins with."""
    answer = _WRAPPING.sub(" ", answer).strip()
    found = _LETTER.match(answer)
    if found is None or _MORE.match(answer, found.end(found.lastindex or 0)):
        return None
    return found.group(1) or found.group(2)
