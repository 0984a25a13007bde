"""How a round of drafts becomes the workspace of the next: one file each, one line below."""

from collections.abc import Mapping
from types import MappingProxyType

from pdr_graph.distill.notes import answers, consensus, critique, summary
from pdr_graph.distill.selection import (
    calls_of_tournament,
    calls_per_sample,
    latest,
    none,
    random_k,
    top_k,
    top_k_per_sample,
    tournament,
)
from pdr_graph.distill.workspace import (
    Distil,
    Distiller,
    Entry,
    MaxCalls,
    draft_entry,
    no_calls,
    one_call,
)

DISTILLERS: Mapping[str, Distiller] = MappingProxyType(
    {
        "summary": Distiller(summary),
        "top_k": Distiller(top_k),
        "top_k_per_sample": Distiller(top_k_per_sample, calls_per_sample),
        "random_k": Distiller(random_k, no_calls),
        "latest": Distiller(latest, no_calls),
        "critique": Distiller(critique),
        "answers": Distiller(answers, no_calls),
        "consensus": Distiller(consensus, no_calls),
        "none": Distiller(none, no_calls),
        "tournament": Distiller(tournament, calls_of_tournament),
    }
)

__all__ = [
    "DISTILLERS",
    "Distil",
    "Distiller",
    "Entry",
    "MaxCalls",
    "draft_entry",
    "no_calls",
    "one_call",
]
