"""Whether another round of a run may start: the budget applied to its state."""

from pdr_graph.budget import finish_cost, round_cost, why_not_another_round
from pdr_graph.distill import MaxCalls
from pdr_graph.state import PDRState, config_of
from pdr_graph.strategies import width_of


def why_not_round(state: PDRState, max_calls: MaxCalls) -> str | None:
    """Say why the next parallel round cannot be paid for, None if it can."""
    config, next_round = config_of(state), state["round"] + 1
    width, after = width_of(config, next_round), width_of(config, next_round + 1)
    return why_not_another_round(
        config,
        state.get("ledger", []),
        cost=round_cost(
            config,
            width=width,
            problem_tokens=state["problem_tokens"],
            distiller_calls=max_calls(width, after, config.k),
        ),
        reserve=finish_cost(config, problem_tokens=state["problem_tokens"]),
    )
