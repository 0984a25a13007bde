"""The answer's text, released while the model still writes it.

What has been sent cannot be called back. So a thought is held until it ends, and whatever may
turn out to be the beginning of a tag, of a stop text or of the blank end is held until it is not.
The pieces together are the run's solution, cut at the first stop text.
"""

from collections.abc import Sequence

from pdr_graph.errors import CallError
from pdr_graph.llm.thought import CLOSE, OPEN
from pdr_graph.llm.wellformed import wellformed


class Answer:
    """One answer under way."""

    def __init__(self, stops: Sequence[str] = (), *, may_think: bool = True) -> None:
        """Begin.

        Args:
            stops: Texts before which the answer ends.
            may_think: Whether the text may begin inside a thought that the prompt has opened;
                it is then held until the thought is closed, or the answer is known as a whole.
        """
        self._stops = tuple(stops)
        self._may_think = may_think
        self._attempt = 0
        self._raw = ""
        self.sent = ""
        """What has been released so far."""

    def take(self, attempt: int, text: str, *, thought_apart: bool = False) -> str:
        """Add what the model has just written; return what may be sent now.

        Args:
            attempt: A higher one than before begins the reply anew.
            text: The piece.
            thought_apart: Whether the server sends this reply's thought apart from its text.
        """
        if attempt != self._attempt:
            self._attempt, self._raw = attempt, ""
        if thought_apart:
            self._may_think = False
        self._raw += text
        return self._release(self._settled())

    def finish(self, solution: str) -> str:
        """Return what is left to be sent of the run's solution.

        Raises:
            CallError: what was sent is not how it begins: a second attempt came out otherwise.
        """
        final = self._cut(solution)
        if not final.startswith(self.sent):
            raise CallError(
                "the answer was interrupted and came out otherwise at the second attempt"
            )
        return self._release(final)

    def is_cut(self, solution: str) -> bool:
        """Tell whether a stop text ended the answer."""
        return len(self._cut(solution)) < len(solution)

    def _release(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        piece, self.sent = text[len(self.sent) :], text
        return piece

    def _settled(self) -> str:
        """Return as much of the solution as cannot change any more."""
        _, closing, after = self._raw.rpartition(CLOSE)
        if not closing and self._may_think:
            return ""
        text = after if closing else self._raw
        if OPEN in text:
            return ""
        cut = self._cut(text.strip())
        if len(cut) < len(text.strip()):
            return wellformed(cut)
        held = max(_overlap(text, each) for each in (OPEN, CLOSE, *self._stops))
        return wellformed(text[: len(text) - held].strip())

    def _cut(self, text: str) -> str:
        found = [place for each in self._stops if (place := text.find(each)) >= 0]
        return text[: min(found)] if found else text


def _overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
