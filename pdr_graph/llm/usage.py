"""What one call cost, as the server says it.

Counts the tokens and seconds of one node in one super-step.

`critical_tokens` follows the paper's B_seq: of calls made side by side the largest counts, of
calls made one after another the sum.
"""

from dataclasses import dataclass, field

from langchain_core.messages import AIMessage

from pdr_graph.types import LedgerRow


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


@dataclass(slots=True)
class Spent:
    """What one logical call cost, all its attempts together."""

    requests: int = 0
    usage: list[Usage] = field(default_factory=list)
    failed: int = 0
    aborted: int = 0
    seconds: float = 0.0
    nominal: int = 0
    """Completion tokens allotted to the call; its attempts share one allotment."""

    @property
    def total(self) -> int:
        """Prompt and completion tokens of all attempts."""
        return sum(usage.total for usage in self.usage)


class Meter:
    """Collects what a node spends and states it as a ledger row."""

    def __init__(self, node: str, round_number: int, step: int) -> None:
        self._row = LedgerRow(
            round=round_number,
            node=node,
            step=step,
            calls=0,
            prompt_tokens=0,
            cached_tokens=0,
            completion_tokens=0,
            reasoning_tokens=0,
            failed=0,
            aborted=0,
            seconds=0.0,
            estimated=False,
            critical_tokens=0,
            nominal_tokens=0,
            critical_nominal=0,
        )

    def add(self, side_by_side: list[Spent]) -> None:
        """Charge calls that were made in parallel, after all that was charged before."""
        row = self._row
        for spent in side_by_side:
            row["calls"] += spent.requests
            row["failed"] += spent.failed
            row["aborted"] += spent.aborted
            row["nominal_tokens"] += spent.nominal
            for usage in spent.usage:
                row["prompt_tokens"] += usage.prompt
                row["cached_tokens"] += usage.cached
                row["completion_tokens"] += usage.completion
                row["reasoning_tokens"] += usage.reasoning
                row["estimated"] |= usage.estimated
        row["critical_tokens"] += max((spent.total for spent in side_by_side), default=0)
        row["critical_nominal"] += max((spent.nominal for spent in side_by_side), default=0)
        row["seconds"] += max((spent.seconds for spent in side_by_side), default=0.0)

    def row(self, *, estimated: bool = False) -> LedgerRow:
        """Return the row; `estimated` marks a workspace measured by the estimate."""
        self._row["estimated"] |= estimated
        return self._row.copy()
