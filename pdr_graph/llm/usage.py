"""What calls to the model cost: one call, its attempts together, and one node in one super-step."""

import uuid
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage

from pdr_graph.budget import empty_row, merge_rows, with_part
from pdr_graph.types import LedgerRow


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, as the server states them."""

    prompt: int = 0
    cached: int = 0
    """Part of `prompt` that the server had in its prefix cache."""
    completion: int = 0
    reasoning: int = 0
    """Part of `completion` spent on thought, where the server tells."""
    estimated: bool = False
    """Whether the server stated nothing and the counts are an estimate."""

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


def read_usage(message: AIMessage) -> Usage | None:
    """Return the usage that a message carries, None if its server sent none.

    The message of a stream carries the last stated usage: a server that states usage with every
    piece states the sum so far.
    """
    metadata = message.usage_metadata
    if metadata is None:
        return None
    prompt, completion = metadata.get("input_tokens"), metadata.get("output_tokens")
    if not (_is_count(prompt) and _is_count(completion)):
        return None
    return Usage(
        prompt=prompt,
        cached=min(prompt, _detail(metadata.get("input_token_details"), "cache_read")),
        completion=completion,
        reasoning=min(completion, _detail(metadata.get("output_token_details"), "reasoning")),
    )


def _detail(details: Mapping[str, Any] | None, name: str) -> int:
    # LangChain puts the service tier in front of the name.
    tiers = (name, f"priority_{name}", f"flex_{name}")
    counts = ((details or {}).get(tier) for tier in tiers)
    return next((count for count in counts if count and _is_count(count)), 0)


MOST_TOKENS = 2**40
"""Most tokens of one request, far above any real one; a larger number is no count."""
REFUSED_USAGE: ContextVar[list[str] | None] = ContextVar("pdr_graph_refused_usage", default=None)
"""Receives the figures of a request that are no counts; None if they are not collected."""


def _is_count(value: object) -> bool:
    # An exact type: a truth value is an int too.
    return type(value) is int and 0 <= value < MOST_TOKENS


def stated_usage(usage: Mapping[str, Any]) -> Usage:
    """Return the usage that a reply of the OpenAI protocol states, its counts made plain."""
    prompt_details = usage.get("prompt_tokens_details") or {}
    completion_details = usage.get("completion_tokens_details") or {}
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    return Usage(
        prompt=prompt,
        cached=min(prompt, prompt_details.get("cached_tokens", 0)),
        completion=completion,
        reasoning=min(completion, completion_details.get("reasoning_tokens", 0)),
    )


@dataclass(slots=True)
class Spent:
    """What one call cost, all its attempts together."""

    requests: int = 0
    usage: list[Usage] = field(default_factory=list)
    """Usage of each request that may have cost anything."""
    failed: int = 0
    aborted: int = 0
    over_budget: int = 0
    """Replies whose thought was longer than its budget by more than `client.BLOCK` tokens."""
    seconds: float = 0.0
    nominal: int = 0
    """Completion tokens allotted to the call; its attempts share one allotment."""
    refused_usage: str = ""
    """The first of the server's figures that were refused; empty if none were."""

    @property
    def total(self) -> int:
        """Prompt and completion tokens of all attempts."""
        return sum(usage.total for usage in self.usage)


class Meter:
    """Collects what a node spends in one super-step, and states it as a ledger row.

    The critical path follows the paper's B_seq: of calls made in parallel the largest counts, of
    calls made in sequence the sum.
    """

    def __init__(
        self,
        node: str,
        round_number: int,
        step: int,
        *,
        run: str = "",
        part: str = "",
        model: str = "",
    ) -> None:
        """Begin at zero.

        Args:
            node: Which node spends.
            round_number: Its round.
            step: Its super-step.
            run: The run.
            part: Tells tasks of one super-step apart.
            model: The model that is asked; empty in a run with only one model.
        """
        self._row = empty_row(round_number, node, step)
        self._row["run"], self._part = run, part
        if model:
            self._row["model"] = model

    def add(self, parallel: list[Spent]) -> None:
        """Charge calls that were made in parallel, after all that were charged before."""
        row = self._row
        for spent in parallel:
            row["calls"] += spent.requests
            row["failed"] += spent.failed
            row["aborted"] += spent.aborted
            row["nominal_tokens"] += spent.nominal
            row["over_budget"] += spent.over_budget
            for usage in spent.usage:
                row["prompt_tokens"] += usage.prompt
                row["cached_tokens"] += usage.cached
                row["completion_tokens"] += usage.completion
                row["reasoning_tokens"] += usage.reasoning
                row["estimated"] |= usage.estimated
        row["critical_tokens"] += max((spent.total for spent in parallel), default=0)
        row["critical_nominal"] += max((spent.nominal for spent in parallel), default=0)
        row["seconds"] += max((spent.seconds for spent in parallel), default=0.0)

    def row(self, *, estimated: bool = False) -> LedgerRow:
        """Return the row; `estimated` marks a workspace whose length is an estimate."""
        self._row["estimated"] |= estimated
        return with_part(self._row, self._part) if self._row.get("run") else self._row.copy()


class Charges:
    """The meters of one call of the graph, until their rows are in a ledger."""

    def __init__(self) -> None:
        self._open: dict[str, Meter] = {}
        self._settled: list[LedgerRow] = []

    def meter(self, task: str, new: Meter) -> Meter:
        """Return the meter of a task; a further attempt at the task goes on with the first's."""
        return self._open.setdefault(task, new)

    def settle(self, task: str, row: LedgerRow) -> None:
        """Note that a task returns its row."""
        self._open.pop(task, None)
        self._settled.append(row)

    @property
    def num_settled(self) -> int:
        """How many tasks have returned a row."""
        return len(self._settled)

    def settled(self) -> list[LedgerRow]:
        """Return the rows that tasks have returned."""
        return merge_rows([], self._settled)

    def lost(self, ledger: list[LedgerRow] | None = None) -> list[LedgerRow]:
        """Return the rows of tasks that returned nothing, under a name of their own.

        Their tasks will be done again, and are charged under the usual one. With a ledger, the rows
        that a task returned and that are not in it are lost as well.
        """
        attempt = uuid.uuid4().hex[:8]
        rows = [meter.row() for meter in self._open.values()]
        if ledger is not None:
            rows += [row for row in self._settled if merge_rows(ledger, [row]) != ledger]
        return [LedgerRow({**row, "attempt": attempt}) for row in rows if row["calls"]]

    def rows(self) -> list[LedgerRow]:
        """Return all rows of the call."""
        return merge_rows(self._settled, self.lost())
