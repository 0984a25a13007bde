"""Long CoT, SR, PDR and their neighbours: one family of strategies.

A strategy is a set of values of `PDRConfig`, above all widths, distiller and finish. Sources: PDR
and SR arXiv 2510.01123; RSA 2509.26626; PaCoRe 2601.05593; the adaptive stop 2604.07725.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

from pdr_graph.config import PDRConfig, make_config
from pdr_graph.errors import ConfigError

PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "long_cot": {"widths": (), "finish": "refine"},
        "sr": {"widths": (1, 1, 1), "distiller": "latest"},
        "sr_error_analysis": {"widths": (1, 1, 1), "distiller": "critique"},
        "pdr": {"widths": (16, 8, 4), "distiller": "summary"},
        "pdr_adaptive": {
            "widths": (4, 4, 4, 4),
            "distiller": "none",
            "finish": "vote",
            "pool_rounds": True,
            "stop_on_consensus": 0.75,
        },
        "majority": {"widths": (16,), "finish": "vote"},
        "vote_first": {
            "widths": (3, 2, 3, 4, 4),
            "distiller": "none",
            "finish": "weighted_vote",
            "pool_rounds": True,
            "stop_on_consensus": 0.75,
        },
        "rsa": {"widths": (16,) * 10, "distiller": "random_k", "k": 4, "finish": "vote"},
        "pacore": {"widths": (32, 4), "distiller": "answers"},
        "genselect": {"widths": (16,), "finish": "select"},
        "tournament": {"widths": (16, 8, 4), "distiller": "tournament", "k": 4},
    }
)
"""The built-in presets, each with its fields of `PDRConfig`."""


def preset(
    name: str,
    presets: Mapping[str, Mapping[str, object]] = PRESETS,
    /,
    **overrides: object,
) -> PDRConfig:
    """Return the config of a named strategy; `overrides` win over its fields.

    Args:
        name: A key of `presets`.
        presets: Where to look it up; `{**PRESETS, "mine": {...}}` adds one of your own.
        overrides: Fields of `PDRConfig`.

    Raises:
        ConfigError: no such preset, or a field does not fit.
    """
    try:
        fields = presets[name]
    except KeyError:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(presets)}") from None
    return make_config(**{"preset": name, **fields, **overrides})


def num_rounds(config: PDRConfig, extra_rounds: int = 0) -> int:
    """Return how many parallel rounds the run may have, extra ones included."""
    return len(config.widths) + extra_rounds


def width_of(config: PDRConfig, round_number: int) -> int:
    """Return M_r; a round beyond the planned ones has the last width, or 1 if none is planned."""
    if round_number <= len(config.widths):
        return config.widths[round_number - 1]
    return config.widths[-1] if config.widths else 1


def drafts_needed(config: PDRConfig, round_number: int) -> int:
    """Return how many drafts of a round must have a solution for the run to go on."""
    return _share_of(config, round_number, min(config.min_success, config.quorum))


def drafts_awaited(config: PDRConfig, round_number: int) -> int:
    """Return how many drafts of a round with a solution are waited for before the rest is cut."""
    return _share_of(config, round_number, config.quorum)


def _share_of(config: PDRConfig, round_number: int, share: float) -> int:
    # The tolerance keeps 0.1 * 30 from asking for a fourth draft.
    return max(1, math.ceil(share * width_of(config, round_number) - 1e-9))
