"""What a run has cost, and what its next round may cost.

B_total counts every call, B_seq the calls on the critical path. Their nominal forms count the
completion tokens that were allotted instead of those used, as the paper's plots do (arXiv
2510.01123, section 4).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from html import escape
from operator import add, itemgetter
from typing import Any, cast

from pdr_graph.config import FREE_FINISHES, PDRConfig
from pdr_graph.errors import counted
from pdr_graph.types import LedgerRow, Price

TEMPLATE_TOKENS = 192
"""Tokens charged for a prompt's fixed words and the chat template, which are not counted."""

CANDIDATE_TOKENS = 20
"""Tokens charged for the lines around each candidate of a prompt."""

Along = Callable[[float, float], float]
"""Joins two figures of the critical path: `max` for rows in parallel, `add` in sequence."""

_COUNTS = (
    *("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
    *("failed", "aborted", "nominal_tokens", "over_budget"),
)
"""Fields of a row that add up over all calls; each of its parts holds them in this order."""
_CRITICAL = ("seconds", "critical_tokens", "critical_nominal")
"""Fields that add up over calls in sequence; of parallel calls the largest counts."""

ABANDONED = "abandoned"
"""Node name of the row that holds the cost of an earlier run, which new input has ended."""


def empty_row(round_number: int, node: str, step: int) -> LedgerRow:
    """Return the row of a node that has spent nothing."""
    counts = dict.fromkeys((*_COUNTS, "critical_tokens", "critical_nominal"), 0)
    row = {"round": round_number, "node": node, "step": step, "seconds": 0.0, "estimated": False}
    return cast(LedgerRow, row | counts | {"run": "", "attempt": "", "parts": {}})


def merge_rows(rows: list[LedgerRow], new: list[LedgerRow]) -> list[LedgerRow]:
    """Add rows to a ledger; a row that is in it already changes nothing.

    Rows of one node and model in one super-step ran in parallel and become one. Each row names what
    it has counted (`parts`), so a ledger may pass through another graph and be merged with itself.
    """
    merged: dict[object, LedgerRow] = {}
    for row in [*rows, *new]:
        known = merged.get(_identity(row))
        merged[_identity(row)] = row if known is None else _once(known, row)
    return sorted(merged.values(), key=itemgetter("step"))


def _identity(row: LedgerRow) -> object:
    whose = row.get("run", ""), row.get("attempt", "")
    return (*whose, row["round"], row["node"], row["step"], row.get("model", ""))


def _once(known: LedgerRow, row: LedgerRow) -> LedgerRow:
    """Merge two rows of one identity, and count what is in both of them once."""
    joined = _joined(known, row, max)
    was, new = known.get("parts"), row.get("parts")
    if not was or not new:
        return joined
    # A run that was stopped and went on has cost more since.
    parts = was | {name: max(part, was.get(name, part)) for name, part in new.items()}
    counts = dict(zip(_COUNTS, map(sum, zip(*parts.values(), strict=True)), strict=True))
    return cast(LedgerRow, cast(dict[str, Any], joined) | counts | {"parts": parts})


def with_part(row: LedgerRow, name: str) -> LedgerRow:
    """Return a row that is counted once under this name, however often it is merged."""
    numbers = cast(dict[str, Any], row)
    return LedgerRow({**row, "parts": {name: [numbers.get(field, 0) for field in _COUNTS]}})


def abandoned_rows(rows: Iterable[LedgerRow], step: int) -> list[LedgerRow]:
    """Return what an abandoned run has cost, one row for each model; none is on a critical path."""
    found = totals_by_model(rows, ABANDONED, step)
    return [_off_the_path(row) for row in found if row["calls"]]


def totals_by_model(rows: Iterable[LedgerRow], node: str, step: int) -> list[LedgerRow]:
    """Return a run as one row for each model, of `node` and `step` of a graph around it.

    The first row has the critical path of the whole run, and its seconds.
    """
    rows = tuple(rows)
    whole = Ledger(rows).total(node, step)
    found = []
    for model in dict.fromkeys(row.get("model", "") for row in rows if row["calls"]) or [""]:
        own = [row for row in rows if row.get("model", "") == model]
        row = _off_the_path(Ledger(tuple(own)).total(node, step))
        found.append(LedgerRow({**row, "model": model}) if model else row)
    path = {name: cast(dict[str, Any], whole)[name] for name in _CRITICAL}
    return [cast(LedgerRow, found[0] | path), *found[1:]]


def _off_the_path(row: LedgerRow) -> LedgerRow:
    path = {"critical_tokens": 0, "critical_nominal": 0, "seconds": 0.0}
    return cast(LedgerRow, row | path)


def b_total(rows: Iterable[LedgerRow]) -> int:
    """Return prompt and completion tokens of all calls."""
    return sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)


def elapsed_s(rows: Iterable[LedgerRow]) -> float:
    """Return the seconds worked; the time between a kill and a resume does not count."""
    return sum(row["seconds"] for row in rows)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a run cost, per node and round and in all."""

    rows: tuple[LedgerRow, ...] = ()
    model: str = ""
    """The model of rows that name none; empty if unknown."""
    prices: Mapping[str, Price] = field(default_factory=dict)
    """Prices that the user states, by the name of the model."""

    @property
    def b_total(self) -> int:
        """Prompt and completion tokens of all calls."""
        return b_total(self.rows)

    @property
    def b_seq(self) -> int:
        """Prompt and completion tokens on the critical path."""
        return self.total()["critical_tokens"]

    @property
    def estimated(self) -> bool:
        """Whether any count in it is an estimate."""
        return any(row["estimated"] for row in self.rows)

    @property
    def over_budget(self) -> int:
        """Calls whose thought was longer than its budget."""
        return sum(row.get("over_budget", 0) for row in self.rows)

    def total(self, node: str = "", step: int = 0) -> LedgerRow:
        """Return the whole run as one row, of `node` and `step` of a graph around it."""
        empty = empty_row(0, node, step)
        steps = _merged(self.rows, _super_step, max)
        return reduce(lambda done, row: _joined(done, row, add), steps, empty)

    def by_model(self) -> dict[str, LedgerRow]:
        """Return one row for each model, in the order of their first calls.

        A model without calls has no row.
        """
        rows = _merged((row for row in self.rows if row["calls"]), self._model_of, add)
        return {self._model_of(row): row for row in rows}

    @property
    def cost(self) -> float | None:
        """What the run has cost by the stated prices; None where a model has none."""
        costs = [self.cost_of(model) for model in self.by_model()]
        known = [cost for cost in costs if cost is not None]
        return sum(known) if len(known) == len(costs) and self.prices else None

    def cost_of(self, model: str) -> float | None:
        """Return what one model has cost; None if its price is not stated."""
        price = self.prices.get(model)
        return None if price is None else price.of(self.by_model()[model])

    def _model_of(self, row: LedgerRow) -> str:
        return row.get("model") or self.model

    def to_json(self) -> dict[str, object]:
        """Return the ledger as plain data, with one row per round and node.

        The tokens of each model are in it where there are several, or prices.
        """
        total = self.total()
        over = {"over_thinking_budget": self.over_budget} if self.over_budget else {}
        return {
            "b_total": self.b_total,
            "b_seq": self.b_seq,
            "b_total_nominal": total["nominal_tokens"],
            "b_seq_nominal": total["critical_nominal"],
            "prompt_tokens": total["prompt_tokens"],
            "completion_tokens": total["completion_tokens"],
            "calls": total["calls"],
            "failed": total["failed"],
            "aborted": total["aborted"],
            **over,
            **self._models_to_json(),
            "rows": [
                {name: row.get(name) for name in _REPORTED if name != "model" or name in row}
                for row in self.per_round_and_node()
            ],
        }

    def sums(self, seconds: float | None = None) -> list[tuple[str, str]]:
        """Return the sums, each as its name and a phrase that says what it counts.

        Args:
            seconds: Wall-clock time of the run; None leaves it out.
        """
        total, about = self.total(), "~" if self.estimated else ""
        lost = {"failed": total["failed"], "aborted": total["aborted"]}
        losses = "".join(f", {number:,} {name}" for name, number in lost.items() if number)
        took = "" if seconds is None else f" in {seconds:.1f} s"
        every, longest = counted(self.b_total, "token"), counted(self.b_seq, "token")
        nominal = f"{total['nominal_tokens']:,} and {total['critical_nominal']:,}"
        return [
            ("b_total", f"{about}{every} of all calls, with prompts"),
            ("b_seq", f"{about}{longest} on the longest path of calls"),
            ("nominal", f"{nominal} completion tokens allotted"),
            ("calls", f"{total['calls']:,}{took}{losses}"),
        ]

    def __str__(self) -> str:
        """Return the table that `print` shows: a line for each node of each round, and the sums."""
        table = [_COLUMNS, *self._cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if name == "node" else cell.rjust(width)
                for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
            )
            for row in table
        ]
        sums = [f"{name:<8} {said}" for name, said in self.sums()]
        return "\n".join([*lines, *sums])

    def _repr_html_(self) -> str:
        """Return the table that Jupyter shows."""
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
            for row in self._cells()
        )
        sums = "".join(f"<div><b>{name}</b> {escape(said)}</div>" for name, said in self.sums())
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{sums}"

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                str(row["round"]),
                row["node"],
                str(row["calls"]),
                f"{'~' * row['estimated']}{row['prompt_tokens']:,}",
                f"{'~' * row['estimated']}{row['completion_tokens']:,}",
                str(row["failed"]),
                str(row["aborted"]),
                f"{row['seconds']:.1f}",
            )
            for row in self.per_round_and_node()
        ]

    def _models_to_json(self) -> dict[str, object]:
        rows = self.by_model()
        if len(rows) < 2 and not self.prices:
            return {}
        models: dict[str, dict[str, object]] = {
            model: {name: row.get(name) for name in _REPORTED_OF_MODEL}
            for model, row in rows.items()
        }
        if not self.prices:
            return {"models": models}
        for model, figures in models.items():
            figures["cost"] = self.cost_of(model)
        return {"cost": self.cost, "models": models}

    def per_round_and_node(self) -> list[LedgerRow]:
        """Return one row per round, node and model, with repeated calls added."""
        return _merged(self.rows, lambda row: (row["round"], row["node"], row.get("model")), add)


_COLUMNS = ("round", "node", "calls", "prompt", "completion", "failed", "aborted", "seconds")
"""Titles of the table."""

_REPORTED = (
    *("round", "node", "model", "calls", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("reasoning_tokens", "failed", "aborted", "seconds", "estimated"),
)
_REPORTED_OF_MODEL = (
    *("calls", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens"),
    "estimated",
)


def round_cost(config: PDRConfig, *, width: int, problem_tokens: int, distiller_calls: int) -> int:
    """Return the most tokens that one round can cost, prompts included."""
    draft = _call_cost(config, problem_tokens + config.kappa)
    distil = _call_cost(config, problem_tokens + width * _candidate_cost(config))
    return width * draft + distiller_calls * distil


def reading_cost(config: PDRConfig, *, problem_tokens: int) -> int:
    """Return the most tokens that a judge can spend on reading one draft."""
    solution = max(config.solution_tokens, config.max_tokens)  # a refinement is read uncut
    return problem_tokens + solution + CANDIDATE_TOKENS + TEMPLATE_TOKENS


def workspace_limit(config: PDRConfig) -> int:
    """Return the most workspace tokens that a call of the run can read; 0 if none reads any.

    Long CoT has no round before its one call. A single round whose drafts are voted on or selected
    from has no later call that reads a workspace. The distiller `none` makes an empty one. A
    solution that is rejected is the workspace of the round after it.
    """
    never = not config.distils or config.distiller == "none"
    return 0 if never and not config.max_extra_rounds else config.kappa


def finish_cost(config: PDRConfig, *, problem_tokens: int) -> int:
    """Return the most tokens that ending the run can cost: the final call and its verdict."""
    final = 0
    if config.finish == "pairwise_vote":
        # Two drafts in both orders, and one token each.
        final = 2 * (problem_tokens + 2 * _candidate_cost(config) + TEMPLATE_TOKENS + 1)
    elif config.finish not in FREE_FINISHES:
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
    rows = [row for row in rows if row["node"] != ABANDONED]
    spent, limit = b_total(rows), config.max_total_tokens
    if limit is not None and spent + cost + reserve > limit:
        return (
            f"the next round may cost {cost} tokens and the final call {reserve}; "
            f"{spent} of max_total_tokens {limit} are spent"
        )
    elapsed = elapsed_s(rows)
    last = max((row["round"] for row in rows), default=0)
    expected = elapsed_s(row for row in rows if row["round"] == last)
    if config.deadline_s is not None and elapsed + expected >= config.deadline_s:
        return (
            f"the next round may take {expected:.1f} s; {elapsed:.1f} s of deadline_s "
            f"{config.deadline_s:g} are gone"
        )
    return None


def _candidate_cost(config: PDRConfig) -> int:
    return config.solution_tokens + CANDIDATE_TOKENS


def _call_cost(config: PDRConfig, input_tokens: int) -> int:
    return input_tokens + TEMPLATE_TOKENS + config.max_tokens


def _super_step(row: LedgerRow) -> object:
    """Tell rows that ran in parallel from rows that ran in sequence."""
    return row.get("run", ""), row.get("attempt", ""), row["step"]


def _merged(
    rows: Iterable[LedgerRow], key: Callable[[LedgerRow], object], along: Along
) -> list[LedgerRow]:
    """Join the rows of each key, in the order of each key's first row."""
    merged: dict[object, LedgerRow] = {}
    for row in rows:
        known = merged.get(key(row))
        merged[key(row)] = row if known is None else _joined(known, row, along)
    return list(merged.values())


def _joined(left: LedgerRow, right: LedgerRow, along: Along) -> LedgerRow:
    """Add two rows."""
    was, new = cast(dict[str, Any], left), cast(dict[str, Any], right)
    # Rows of version 0.1 lack some counts.
    counts = {name: was.get(name, 0) + new.get(name, 0) for name in _COUNTS}
    critical = {name: along(was[name], new[name]) for name in _CRITICAL}
    estimated = was["estimated"] or new["estimated"]
    return cast(LedgerRow, was | counts | critical | {"estimated": estimated})
