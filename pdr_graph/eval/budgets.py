"""Makes arms comparable: from one budget for all to each arm's calls and their lengths.

Budgets are nominal, as the paper plots them (arXiv 2510.01123, section 4): completion tokens
allotted to the calls on the critical path (B_seq) or to all calls (B_total), thought and solution
together. Prompts are not in it; the ledger has what was really spent.

What an arm leaves open is derived. The length of each call comes first; an arm that sets it
(`T=…`, `max_tokens=…`) has its number of drafts derived (one round: majority, genselect) or of
rounds (all of one draft: sr). With both budgets, B_seq decides the length, and B_total the number
of drafts of an arm with one open round; other arms only have to keep within it.

How many calls an arm may make, in sequence and in all: what budgets are derived from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pdr_graph.config import PDRConfig
from pdr_graph.errors import ConfigError
from pdr_graph.eval.records import BudgetRecord
from pdr_graph.extensions import Extensions
from pdr_graph.finish import DRAFT_FINISHES
from pdr_graph.strategies import num_rounds, preset, width_of

_SILENT_VERIFIERS = frozenset({"none", "consensus", "gold"})
"""Verifiers that ask no model."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Model calls of one run at most; agreement, budgets and failures can only save some."""

    sequential: int
    """On the critical path: of calls made side by side, one."""
    total: int

    def __add__(self, other: "Calls") -> "Calls":
        return Calls(self.sequential + other.sequential, self.total + other.total)


def most_calls(config: PDRConfig, extensions: Extensions) -> Calls:
    """Count the calls of a run that does all that its config allows.

    A distiller of the user's own is taken to make its calls side by side.
    """
    rounds = num_rounds(config, config.max_extra_rounds)
    calls = Calls(0, 0)
    for number in range(1, rounds + 1):
        calls += Calls(1, width_of(config, number))
        # A granted extra round comes after a finish, so the rounds before it end in one too.
        last = number >= num_rounds(config)
        if not (last and config.finish in DRAFT_FINISHES):
            next_width = 1 if last else width_of(config, number + 1)
            calls += _distilling(config, width_of(config, number), next_width, extensions)
        if last and number < rounds:
            calls += _ending(config)
    return calls + _ending(config)


def _ending(config: PDRConfig) -> Calls:
    final = int(config.finish != "vote")
    judging = int(config.verifier not in _SILENT_VERIFIERS)
    return Calls(final + judging, final + judging)


def _distilling(config: PDRConfig, width: int, next_width: int, extensions: Extensions) -> Calls:
    picks = config.distiller in {"top_k", "top_k_per_sample"}
    if picks and width <= config.k:
        return Calls(0, 0)  # there is nothing to pick from
    total = extensions.distiller(config.distiller).max_calls(width, next_width, config.k)
    if config.distiller == "tournament":
        return Calls(_stages(width, config.k), total)
    return Calls(min(1, total), total)


def _stages(left: int, k: int) -> int:
    """Return how often the matches of a tournament are played, one stage after another."""
    stages = 0
    while left > k:
        left -= min(left // 2, left - k)
        stages += 1
    return stages


LEAST_TOKENS = 16
"""A call of fewer tokens cannot state an answer."""
MOST_DRAFTS = 4096
"""Drafts or rounds beyond which a budget was surely mistyped."""

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Budgets:
    """What every arm may spend, in nominal completion tokens; None matches nothing."""

    b_seq: int | None = None
    b_total: int | None = None


@dataclass(frozen=True, slots=True)
class OpenArm:
    """An arm before its budget: its preset, and the fields that are fixed."""

    name: str
    preset: str
    fields: Fields
    extensions: Extensions

    def config(self, **derived: object) -> PDRConfig:
        """Return the settings with some of them derived."""
        return preset(self.preset, **{**self.fields, **derived})


def fit(arm: OpenArm, budgets: Budgets) -> tuple[PDRConfig, BudgetRecord]:
    """Derive what an arm leaves open.

    Raises:
        ConfigError: the arm cannot meet the budget; the sentence says why and what would do.
    """
    config, derived = arm.config(), ""
    if budgets.b_seq is not None:
        config, derived = _match(arm, "b_seq", budgets.b_seq)
        if budgets.b_total is not None:
            config, derived = _widen(arm, config, budgets.b_total, derived)
    elif budgets.b_total is not None:
        config, derived = _match(arm, "b_total", budgets.b_total)
    calls = most_calls(config, arm.extensions)
    return config, BudgetRecord(
        max_tokens=config.max_tokens,
        sequential_calls=calls.sequential,
        total_calls=calls.total,
        b_seq_nominal=calls.sequential * config.max_tokens,
        b_total_nominal=calls.total * config.max_tokens,
        derived=derived,
    )


def _match(arm: OpenArm, name: str, budget: int) -> tuple[PDRConfig, str]:
    """Meet one budget by the length of the calls, or else by their number."""
    if "max_tokens" in arm.fields:
        return _match_by_number(arm, name, budget)
    config = arm.config()
    count = _count(most_calls(config, arm.extensions), name)
    each = budget // count
    if each < LEAST_TOKENS:
        raise ConfigError(
            f"{_flag(name)} {budget} leaves arm {arm.name!r} {each} tokens for each of its "
            f"{_calls(count, name)}, {LEAST_TOKENS} are the least; give {count * LEAST_TOKENS} or "
            "more, or fewer calls to the arm"
        )
    how = f"{_flag(name)} {budget} / {_calls(count, name)} = {each} tokens a call"
    return arm.config(max_tokens=each), how


def _match_by_number(arm: OpenArm, name: str, budget: int) -> tuple[PDRConfig, str]:
    """Meet a budget by the number of drafts or of rounds, where that is one number."""
    config = arm.config()
    grow = _growth(arm, config, name)
    if grow is None:
        raise ConfigError(
            f"arm {arm.name!r} sets the length of its calls ({config.max_tokens} tokens), and no "
            f"single number of drafts or rounds is left to derive from {_flag(name)}; leave out "
            "its T or max_tokens"
        )
    what, make = grow
    config = _largest(arm, name, budget, make)
    count = len(config.widths) if what == "rounds" else config.widths[0]
    spent = _count(most_calls(config, arm.extensions), name) * config.max_tokens
    how = (
        f"{_flag(name)} {budget} at {config.max_tokens} tokens a call = {count} {what}, "
        f"which use {spent}"
    )
    return config, how


def _growth(
    arm: OpenArm, config: PDRConfig, name: str
) -> tuple[str, Callable[[int], PDRConfig]] | None:
    """Say what may grow, and make the arm with n of it; None where that is not one number."""
    if "widths" in arm.fields or not config.widths:
        return None
    if set(config.widths) == {1} and config.finish not in {"vote", "select"}:
        return "rounds", lambda n: arm.config(widths=(1,) * n)
    if len(config.widths) == 1 and name == "b_total":
        return "drafts", lambda n: arm.config(widths=(n,))
    return None


def _largest(arm: OpenArm, name: str, budget: int, make: Callable[[int], PDRConfig]) -> PDRConfig:
    """Return the arm with as much of what may grow as the budget pays for."""

    def cost(number: int) -> int:
        config = make(number)
        return _count(most_calls(config, arm.extensions), name) * config.max_tokens

    if cost(1) > budget:
        raise ConfigError(
            f"{_flag(name)} {budget} does not pay for arm {arm.name!r}, which uses {cost(1)} at "
            f"the least with {make(1).max_tokens} tokens a call; raise it, or lower T"
        )
    low, high = 1, 2
    while high <= MOST_DRAFTS and cost(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    if low >= MOST_DRAFTS:
        raise ConfigError(
            f"{_flag(name)} {budget} would give arm {arm.name!r} more than {MOST_DRAFTS} drafts; "
            "lower it"
        )
    return make(low)


def _widen(arm: OpenArm, config: PDRConfig, budget: int, derived: str) -> tuple[PDRConfig, str]:
    """Give an open round the drafts that B_total pays for, at the length that B_seq gave."""
    each = config.max_tokens
    fixed = OpenArm(arm.name, arm.preset, {**arm.fields, "max_tokens": each}, arm.extensions)
    one_round = "widths" not in arm.fields and len(config.widths) == 1 and config.widths != (1,)
    if one_round:
        wide, how = _match_by_number(fixed, "b_total", budget)
        return wide, f"{derived}; {how}"
    total = most_calls(config, arm.extensions).total * each
    if total > budget:
        raise ConfigError(
            f"arm {arm.name!r} would spend up to {total} tokens in all at --b-seq's {each} a call, "
            f"--b-total allows {budget}; narrow its widths, or give one of the two budgets"
        )
    return config, f"{derived}; {total} of --b-total {budget}"


def _count(calls: Calls, name: str) -> int:
    return calls.sequential if name == "b_seq" else calls.total


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _calls(count: int, name: str) -> str:
    kind = "sequential" if name == "b_seq" else "total"
    return f"{count} {kind} call{'s' * (count != 1)}"
