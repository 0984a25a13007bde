"""Budgets for a small model that runs here, for all that the user did not ask for.

It has a small window and runs on a CPU: a preset made for a GPU would take it an hour.
"""

from collections.abc import Mapping
from types import MappingProxyType

from pdr_graph.config import PDRConfig
from pdr_graph.strategies import preset

BUDGETS: Mapping[str, object] = MappingProxyType(
    {"max_tokens": 256, "solution_tokens": 192, "kappa": 384}
)
ROUNDS = 2
SHRINK = 4
"""Widths are divided by it: 16, 8, 4 become 4, 2."""


def small_config(name: str, given: Mapping[str, object]) -> PDRConfig:
    """Return a preset scaled down; what the user gave stays as it is."""
    full = preset(name)
    scaled = {
        **BUDGETS,
        "widths": tuple(max(1, width // SHRINK) for width in full.widths[:ROUNDS]),
        "k": min(full.k, 2),
    }
    return preset(name, **{**scaled, **given})


def announcement(config: PDRConfig) -> str:
    """Say why the run is small, and how small."""
    widths = ",".join(map(str, config.widths)) or "none"
    return (
        "no endpoint is configured (--base-url / PDR_BASE_URL): a small model runs here; "
        f"budgets where you set none: widths {widths}, kappa {config.kappa}, "
        f"max_tokens {config.max_tokens}, solution_tokens {config.solution_tokens}"
    )
