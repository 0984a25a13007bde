"""A policy as the model that the graph calls."""

from functools import lru_cache
from typing import Any

from pdr_graph.llm.client import ModelClient
from pdr_graph.llm.retry import Retry
from pdr_graph.llm.tokens import Source
from pdr_graph.llm.wellformed import wellformed
from pdr_graph.policy.chat import PolicyChat
from pdr_graph.policy.policy import Policy


class OwnCounter:
    """Counts by the tokenizer of a model in this process."""

    source: Source = "file"

    def __init__(self, tokenizer: Any) -> None:  # Any: transformers has no types
        self._tokenizer = tokenizer
        # The problem and each draft are counted several times.
        self._length = lru_cache(maxsize=1024)(self._count)

    async def count(self, text: str) -> int:
        """Return the exact count."""
        return self._length(text)

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(wellformed(text), add_special_tokens=False))


def policy_client(
    policy: Policy,
    tokenizer: Any,  # Any: a tokenizer of transformers, which has no types
    *,
    name: str = "policy",
    window: int | None = None,
    max_in_flight: int = 1024,
    chat_template_kwargs: dict[str, Any] | None = None,  # Any: the template's own
) -> ModelClient:
    """Return a client whose calls a policy answers, token by token.

    Args:
        policy: What draws.
        tokenizer: Renders and encodes prompts, decodes replies, counts.
        name: The model's name in the record of a run.
        window: Context window in tokens; None is the policy's own.
        max_in_flight: Calls at once, which is also how many may share the work.
        chat_template_kwargs: Variables of the chat template.
    """
    chat = PolicyChat(
        policy=policy,
        tokenizer=tokenizer,
        model_name=name,
        chat_template_kwargs=chat_template_kwargs or {},
    )
    return ModelClient(
        chat,
        counter=OwnCounter(tokenizer),
        # Nothing fails in this process that would not fail again.
        retry=Retry(attempts=1),
        max_in_flight=max_in_flight,
        window=window if window is not None else policy.window,
    )
