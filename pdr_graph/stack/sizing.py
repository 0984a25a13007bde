"""How long a context and how many calls at once a strategy asks a server for."""

from dataclasses import dataclass

from pdr_graph.budget import CANDIDATE_TOKENS, TEMPLATE_TOKENS, workspace_limit
from pdr_graph.config import PDRConfig
from pdr_graph.extensions import Extensions
from pdr_graph.strategies import num_rounds, width_of

LEAST_CALLS = 8
"""So that a look by hand, or a second run, need not wait for a narrow strategy."""
ROUNDING = 256
"""Windows are multiples of it, in tokens."""


@dataclass(frozen=True, slots=True)
class Size:
    """What runs of a strategy need of a server."""

    needed: int
    """Tokens of prompt and completion without which no run starts."""
    wished: int
    """Tokens with which no draft is cut to fit a prompt that reads a whole round."""
    calls: int
    """Calls at once."""


def size_of(config: PDRConfig, *, problem_tokens: int, runs: int) -> Size:
    """Work out what `runs` runs at a time need.

    Args:
        config: The strategy and its budgets.
        problem_tokens: The longest problem, in model tokens.
        runs: Runs at the same time.

    Raises:
        ConfigError: The strategy names a distiller that there is not.
    """
    frame = problem_tokens + TEMPLATE_TOKENS + config.max_tokens
    needed = frame + workspace_limit(config)
    reads = [needed]
    candidate = config.solution_tokens + CANDIDATE_TOKENS
    max_calls = Extensions().distiller(config.distiller).max_calls
    for index in range(1, num_rounds(config) + 1):
        width = width_of(config, index)
        if max_calls(width, width_of(config, index + 1), config.k) > 0:
            reads.append(frame + width * candidate)
    if config.finish == "select":
        reads.append(frame + max(config.widths) * candidate)
    if config.verifier not in {"none", "consensus"}:
        reads.append(frame + candidate)
    calls = runs * max(config.widths, default=1)
    return Size(_rounded(needed), _rounded(max(reads)), max(calls, LEAST_CALLS))


def _rounded(tokens: int) -> int:
    return -(-tokens // ROUNDING) * ROUNDING
