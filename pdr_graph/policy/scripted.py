"""A policy that answers from a list: for tests, and to see what a run costs without a model."""

from collections.abc import Callable, Sequence
from typing import Any

from pdr_graph.llm.client import Sampling
from pdr_graph.policy.policy import Drawn, check_request

Script = Callable[[str, Sampling], str]
"""Makes the reply of a call from its prompt's text and how it is to be drawn."""


class ScriptedPolicy:
    """Answers from a list, in order, the last one again and again; or by a function.

    Each token has the log-probability −1, and the token that ends a reply is there if it fits.
    """

    def __init__(
        self,
        replies: Sequence[str] | Script,
        tokenizer: Any,  # Any: a tokenizer of transformers, which has no types
        *,
        window: int | None = None,
    ) -> None:
        self._replies = replies
        self._tokenizer = tokenizer
        self.window = window
        self.asked: list[tuple[tuple[int, ...], Sampling]] = []
        """Every call so far."""

    async def draw(self, prompt_ids: Sequence[int], sampling: Sampling) -> Drawn:
        """Return the next reply."""
        check_request(prompt_ids, sampling, self.window)
        self.asked.append((tuple(prompt_ids), sampling))
        text = self._text(prompt_ids, sampling)
        ids = [*self._tokenizer.encode(text, add_special_tokens=False)]
        ids = [*ids, self._tokenizer.eos_token_id]
        kept = tuple(ids[: sampling.max_tokens])
        whole = len(kept) == len(ids)
        return Drawn(kept, (-1.0,) * len(kept), "stop" if whole else "length")

    def _text(self, prompt_ids: Sequence[int], sampling: Sampling) -> str:
        if callable(self._replies):
            return self._replies(self._tokenizer.decode(list(prompt_ids)), sampling)
        return self._replies[min(len(self.asked), len(self._replies)) - 1]
