"""How many calls an arm may make, in sequence and in all: what budgets are derived from."""

from dataclasses import dataclass

from pdr_graph.config import PDRConfig
from pdr_graph.extensions import Extensions
from pdr_graph.finish import DRAFT_FINISHES
from pdr_graph.strategies import num_rounds, width_of

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
