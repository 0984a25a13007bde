"""The ledger's sums, and what the next round may cost.

B_total counts every call, B_seq those on the critical path; their nominal twins count allotted
completion tokens instead of used ones, as the paper's plots do (arXiv 2510.01123, section 4).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pdr_graph.config import PDRConfig
from pdr_graph.types import LedgerRow

TEMPLATE_TOKENS = 192
"""Charged for a prompt's fixed words and the chat template, which no tokenizer call counts."""

CANDIDATE_TOKENS = 20
"""Charged for the lines around each candidate of a prompt."""


def merge_rows(rows: list[LedgerRow], new: list[LedgerRow]) -> list[LedgerRow]:
    """Add rows to a ledger: rows of one node in one super-step ran in parallel and become one."""
    merged = {_key(row): row for row in rows}
    for row in new:
        known = merged.get(_key(row))
        merged[_key(row)] = row if known is None else _side_by_side(known, row)
    return sorted(merged.values(), key=lambda row: row["step"])


def b_total(rows: Iterable[LedgerRow]) -> int:
    """Return prompt and completion tokens of all calls."""
    return sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)


def b_seq(rows: Iterable[LedgerRow]) -> int:
    """Return prompt and completion tokens on the critical path."""
    return sum(row["critical_tokens"] for row in rows)


def elapsed_s(rows: Iterable[LedgerRow]) -> float:
    """Return the seconds worked, which leaves out any time a killed run lay still."""
    return sum(row["seconds"] for row in rows)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a run cost, per node and round and in all."""

    rows: tuple[LedgerRow, ...] = field(default=())

    @property
    def b_total(self) -> int:
        """Prompt and completion tokens of all calls."""
        return b_total(self.rows)

    @property
    def b_seq(self) -> int:
        """Prompt and completion tokens on the critical path."""
        return b_seq(self.rows)

    @property
    def estimated(self) -> bool:
        """Whether any of it is an estimate."""
        return any(row["estimated"] for row in self.rows)

    def to_json(self) -> dict[str, object]:
        """Return the ledger as plain data; one row per round and node."""
        rows = self.per_round_and_node()
        return {
            "b_total": self.b_total,
            "b_seq": self.b_seq,
            "b_total_nominal": sum(row["nominal_tokens"] for row in rows),
            "b_seq_nominal": sum(row["critical_nominal"] for row in rows),
            "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
            "completion_tokens": sum(row["completion_tokens"] for row in rows),
            "calls": sum(row["calls"] for row in rows),
            "failed": sum(row["failed"] for row in rows),
            "aborted": sum(row["aborted"] for row in rows),
            "rows": [{name: row.get(name) for name in _REPORTED} for row in rows],
        }

    def per_round_and_node(self) -> list[LedgerRow]:
        """Return one row per round and node; a round asked for again after a failure is added."""
        merged: dict[tuple[int, str], LedgerRow] = {}
        for row in self.rows:
            key = (row["round"], row["node"])
            merged[key] = _one_after_another(merged[key], row) if key in merged else row
        return list(merged.values())


_REPORTED = (
    "round",
    "node",
    "calls",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "failed",
    "aborted",
    "seconds",
    "estimated",
)


def round_cost(config: PDRConfig, *, width: int, problem_tokens: int, distiller_calls: int) -> int:
    """Return the most tokens that one round can cost, prompts included."""
    draft = _call_cost(config, problem_tokens + config.kappa)
    distil = _call_cost(config, problem_tokens + width * _candidate_cost(config))
    return width * draft + distiller_calls * distil


def workspace_limit(config: PDRConfig) -> int:
    """Return the most tokens of workspace that a call of the run can read; 0 where none reads any.

    Long CoT has no round before its one call, and where one round of drafts is voted on or selected
    from, nothing is asked after them with a workspace.
    """
    never = not config.widths or (len(config.widths) == 1 and config.finish in {"vote", "select"})
    return 0 if never and not config.max_extra_rounds else config.kappa


def finish_cost(config: PDRConfig, *, problem_tokens: int) -> int:
    """Return the most tokens that ending the run can cost: the final call and its verdict."""
    final = 0
    if config.finish != "vote":
        # A selection reads the drafts of whichever round turns out to be the last.
        drafts = max(config.widths, default=0) if config.finish == "select" else 0
        read = max(workspace_limit(config), drafts * _candidate_cost(config))
        final = _call_cost(config, problem_tokens + read)
    judging = 0
    if config.verifier not in {"none", "consensus"}:
        judging = _call_cost(config, problem_tokens + _candidate_cost(config))
    return final + judging


def why_not_another_round(
    config: PDRConfig, rows: Sequence[LedgerRow], *, cost: int, reserve: int
) -> str | None:
    """Say why a further round must not start, None if it may.

    Args:
        config: Holds `max_total_tokens` and `deadline_s`.
        rows: The ledger so far.
        cost: The most tokens that the round can cost.
        reserve: Tokens kept back for the final call.
    """
    spent, limit = b_total(rows), config.max_total_tokens
    if limit is not None and spent + cost + reserve > limit:
        return (
            f"the next round may cost {cost} tokens and the final call {reserve}; "
            f"{spent} of max_total_tokens {limit} are spent"
        )
    elapsed = elapsed_s(rows)
    expected = _last_round_s(rows)
    if config.deadline_s is not None and elapsed + expected >= config.deadline_s:
        return (
            f"the next round may take {expected:.1f} s; {elapsed:.1f} s of deadline_s "
            f"{config.deadline_s:g} are gone"
        )
    return None


def _last_round_s(rows: Sequence[LedgerRow]) -> float:
    last = max((row["round"] for row in rows), default=0)
    return elapsed_s(row for row in rows if row["round"] == last)


def _candidate_cost(config: PDRConfig) -> int:
    return config.solution_tokens + CANDIDATE_TOKENS


def _call_cost(config: PDRConfig, input_tokens: int) -> int:
    return input_tokens + TEMPLATE_TOKENS + config.max_tokens


def _key(row: LedgerRow) -> tuple[int, str, int]:
    return row["round"], row["node"], row["step"]


def _side_by_side(left: LedgerRow, right: LedgerRow) -> LedgerRow:
    return _added(left, right) | {
        "seconds": max(left["seconds"], right["seconds"]),
        "critical_tokens": max(left["critical_tokens"], right["critical_tokens"]),
        "critical_nominal": max(left["critical_nominal"], right["critical_nominal"]),
    }


def _one_after_another(left: LedgerRow, right: LedgerRow) -> LedgerRow:
    return _added(left, right) | {
        "seconds": left["seconds"] + right["seconds"],
        "critical_tokens": left["critical_tokens"] + right["critical_tokens"],
        "critical_nominal": left["critical_nominal"] + right["critical_nominal"],
    }


def _added(left: LedgerRow, right: LedgerRow) -> LedgerRow:
    return left | {
        "calls": left["calls"] + right["calls"],
        "prompt_tokens": left["prompt_tokens"] + right["prompt_tokens"],
        "cached_tokens": left["cached_tokens"] + right["cached_tokens"],
        "completion_tokens": left["completion_tokens"] + right["completion_tokens"],
        "reasoning_tokens": left["reasoning_tokens"] + right["reasoning_tokens"],
        "failed": left["failed"] + right["failed"],
        "aborted": left["aborted"] + right["aborted"],
        "estimated": left["estimated"] or right["estimated"],
        "nominal_tokens": left["nominal_tokens"] + right["nominal_tokens"],
    }
