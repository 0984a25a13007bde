"""Makes arms comparable: derives each arm's calls and their lengths from one budget for all.

Budgets are nominal, as the paper plots them (arXiv 2510.01123, section 4): completion tokens
allotted to the calls on the critical path (B_seq) or to all calls (B_total), thought and solution
together. Prompts are not counted; the ledger has what was really spent.

First the length of the calls is derived. If an arm fixes it (`T=…`, `max_tokens=…`), the number of
drafts is derived (one round: majority, genselect) or the number of rounds (one draft each: sr).
With both budgets, B_seq decides the length of the calls, and B_total the number of drafts of an arm
with one open round; other arms must stay within B_total.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pdr_graph.config import DRAFT_FINISHES, SHORT_FINISHES, PDRConfig, num_rounds, preset, width_of
from pdr_graph.errors import ConfigError, counted
from pdr_graph.eval.records import BudgetRecord
from pdr_graph.extensions import Extensions

LEAST_TOKENS = 16
"""A shorter call cannot state an answer."""
MOST_DRAFTS = 4096
"""A budget that allows more drafts or rounds than these is taken for a typing error."""
_SILENT_VERIFIERS = frozenset({"none", "consensus", "gold"})
"""Verifiers that ask no model."""

Fields = Mapping[str, object]
"""Fields of a `PDRConfig` by name."""
Kind = Literal["b_seq", "b_total"]


@dataclass(frozen=True, slots=True)
class Calls:
    """Most model calls of one run; agreement, budgets and failures can only save some."""

    sequential: int
    """On the critical path: calls made side by side count as one."""
    total: int
    """In all."""

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.sequential + other.sequential, self.total + other.total)

    def of(self, kind: Kind) -> int:
        """Return the number that a kind of budget counts."""
        return self.sequential if kind == "b_seq" else self.total


def most_calls(config: PDRConfig, extensions: Extensions) -> Calls:
    """Count the calls of a run that does everything its config allows.

    A distiller of the user's own is assumed to make its calls side by side.
    """
    rounds = num_rounds(config, config.max_extra_rounds)
    calls = Calls(0, 0)
    for number in range(1, rounds + 1):
        width = width_of(config, number)
        calls += Calls(1, width)
        # An extra round follows a finish, so each round before it ends in a finish too.
        last = number >= num_rounds(config)
        if not (last and config.finish in DRAFT_FINISHES):
            next_width = 1 if last else width_of(config, number + 1)
            calls += _distiller_calls(config, width, next_width, extensions)
        if last and number < rounds:
            calls += _final_calls(config)
    return calls + _final_calls(config)


def _final_calls(config: PDRConfig) -> Calls:
    number = int(config.finish not in SHORT_FINISHES) + int(
        config.verifier not in _SILENT_VERIFIERS
    )
    return Calls(number, number)


def _distiller_calls(
    config: PDRConfig, width: int, next_width: int, extensions: Extensions
) -> Calls:
    if config.distiller in {"top_k", "top_k_per_sample"} and width <= config.k:
        return Calls(0, 0)  # all drafts are admitted
    total = extensions.distiller(config.distiller).max_calls(width, next_width, config.k)
    if config.distiller == "tournament":
        return Calls(_stages(width, config.k), total)
    return Calls(min(1, total), total)


def _stages(left: int, k: int) -> int:
    """Count the stages of a tournament, each of matches side by side."""
    stages = 0
    while left > k:
        left -= min(left // 2, left - k)
        stages += 1
    return stages


@dataclass(frozen=True, slots=True)
class Budgets:
    """What every arm may spend, in nominal completion tokens; None sets no limit."""

    b_seq: int | None = None
    b_total: int | None = None


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """An arm as asked for."""

    name: str
    text: str
    """As typed, sweeps included."""
    preset: str
    fields: Fields
    """Its settings besides those of the preset."""

    def config(self, **derived: object) -> PDRConfig:
        """Return the arm's settings, some of them derived."""
        return preset(self.preset, **{**self.fields, **derived})


@dataclass(frozen=True, slots=True)
class ArmFit:
    """Fits an arm to budgets; each step returns the settings, and how they were derived."""

    arm: ArmSpec
    extensions: Extensions

    def to(self, budgets: Budgets) -> tuple[PDRConfig, BudgetRecord]:
        """Derive the settings that the arm leaves open.

        Raises:
            ConfigError: the arm cannot meet a budget; the message says why, and what would fit.
        """
        config, derived = self.arm.config(), ""
        if budgets.b_seq is not None:
            config, derived = self._match("b_seq", budgets.b_seq)
            if budgets.b_total is not None:
                config, how = self._keep_within(config, budgets.b_total)
                derived = f"{derived}; {how}"
        elif budgets.b_total is not None:
            config, derived = self._match("b_total", budgets.b_total)
        return config, BudgetRecord(
            max_tokens=config.max_tokens,
            sequential_calls=self._calls(config, "b_seq"),
            total_calls=self._calls(config, "b_total"),
            b_seq_nominal=self._cost(config, "b_seq"),
            b_total_nominal=self._cost(config, "b_total"),
            derived=derived,
        )

    def _calls(self, config: PDRConfig, kind: Kind) -> int:
        return most_calls(config, self.extensions).of(kind)

    def _cost(self, config: PDRConfig, kind: Kind) -> int:
        return self._calls(config, kind) * config.max_tokens

    def _match(self, kind: Kind, budget: int) -> tuple[PDRConfig, str]:
        """Match a budget by the length of the calls, or by their number if that is fixed."""
        if "max_tokens" in self.arm.fields:
            return self._match_by_number(kind, budget)
        count = self._calls(self.arm.config(), kind)
        calls = counted(count, f"{'sequential' if kind == 'b_seq' else 'total'} call")
        each = budget // count
        if each < LEAST_TOKENS:
            raise ConfigError(
                f"{_option(kind)} {budget} leaves arm {self.arm.name!r} {each} tokens for each of "
                f"its {calls}, {LEAST_TOKENS} are the least; give {count * LEAST_TOKENS} or more, "
                "or fewer calls to the arm"
            )
        how = f"{_option(kind)} {budget} / {calls} = {each} tokens a call"
        return self.arm.config(max_tokens=each), how

    def _match_by_number(self, kind: Kind, budget: int) -> tuple[PDRConfig, str]:
        """Match a budget by the number of drafts or of rounds, if that is one number."""
        what, make = self._growth(kind)
        number = self._largest(kind, budget, make)
        config = make(number)
        return config, (
            f"{_option(kind)} {budget} at {config.max_tokens} tokens a call = {number} {what}, "
            f"which use {self._cost(config, kind)}"
        )

    def _growth(self, kind: Kind) -> tuple[str, Callable[[int], PDRConfig]]:
        """Return the noun of what may grow, and a function that makes the arm with n of it."""
        config = self.arm.config()
        if "widths" not in self.arm.fields and config.widths:
            if set(config.widths) == {1} and config.finish not in DRAFT_FINISHES:
                return "rounds", lambda n: self.arm.config(widths=(1,) * n)
            if len(config.widths) == 1 and kind == "b_total":
                return "drafts", lambda n: self.arm.config(widths=(n,))
        raise ConfigError(
            f"arm {self.arm.name!r} sets the length of its calls ({config.max_tokens} tokens), and "
            f"no single number of drafts or rounds is left to derive from {_option(kind)}; leave "
            "out its T or max_tokens"
        )

    def _largest(self, kind: Kind, budget: int, make: Callable[[int], PDRConfig]) -> int:
        """Return the largest number of drafts or rounds that the budget pays for."""
        if (least := self._cost(make(1), kind)) > budget:
            raise ConfigError(
                f"{_option(kind)} {budget} does not pay for arm {self.arm.name!r}, which uses "
                f"{least} at the least with {make(1).max_tokens} tokens a call; raise it, or lower "
                "T"
            )
        numbers = range(1, MOST_DRAFTS + 1)
        number = bisect_right(numbers, budget, key=lambda n: self._cost(make(n), kind))
        if number == MOST_DRAFTS:
            raise ConfigError(
                f"{_option(kind)} {budget} would give arm {self.arm.name!r} more than "
                f"{MOST_DRAFTS} drafts; lower it"
            )
        return number

    def _keep_within(self, config: PDRConfig, b_total: int) -> tuple[PDRConfig, str]:
        """Give an open round the drafts that B_total pays for; hold other arms to B_total."""
        open_round = (
            "widths" not in self.arm.fields and len(config.widths) == 1 and config.widths != (1,)
        )
        if open_round:
            fields = {**self.arm.fields, "max_tokens": config.max_tokens}
            fixed = replace(self, arm=replace(self.arm, fields=fields))
            return fixed._match_by_number("b_total", b_total)
        total = self._cost(config, "b_total")
        if total > b_total:
            raise ConfigError(
                f"arm {self.arm.name!r} would spend up to {total} tokens in all at --b-seq's "
                f"{config.max_tokens} a call, --b-total allows {b_total}; narrow its widths, or "
                "give one of the two budgets"
            )
        return config, f"{total} of --b-total {b_total}"


def _option(kind: Kind) -> str:
    return "--" + kind.replace("_", "-")
