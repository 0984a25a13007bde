"""The tokens of one call as the server drew them, where it was asked to tell."""

from dataclasses import dataclass

from langchain_core.messages import AIMessage


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What a policy gradient needs of one call."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    """Log-probability of each of `token_ids` when it was drawn."""


def read_sampled(message: AIMessage) -> SampledTokens | None:
    """Return the tokens that a message carries, None if its server did not send all of them."""
    metadata = message.response_metadata
    prompt_ids, token_ids = metadata.get("prompt_token_ids"), metadata.get("token_ids")
    rows = (metadata.get("logprobs") or {}).get("content")
    if prompt_ids is None or token_ids is None or rows is None:
        return None
    return SampledTokens(list(prompt_ids), list(token_ids), [row["logprob"] for row in rows])
