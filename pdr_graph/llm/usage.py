"""What one call cost, as the server says it."""

from dataclasses import dataclass

from langchain_core.messages import AIMessage


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one model call."""

    prompt: int = 0
    cached: int = 0
    """Part of `prompt` that the server had in its prefix cache."""
    completion: int = 0
    reasoning: int = 0
    """Part of `completion` spent on thought, where the server tells."""
    estimated: bool = False
    """Whether the server did not say and the counts are an estimate."""

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


def read_usage(message: AIMessage) -> Usage | None:
    """Return the usage that a message carries, None if its server sent none."""
    metadata = message.usage_metadata
    if metadata is None:
        return None
    return Usage(
        prompt=metadata["input_tokens"],
        cached=metadata.get("input_token_details", {}).get("cache_read") or 0,
        completion=metadata["output_tokens"],
        reasoning=metadata.get("output_token_details", {}).get("reasoning") or 0,
    )
