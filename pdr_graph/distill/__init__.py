"""How a round of drafts becomes the workspace of the next: one file each, one line below."""

from collections.abc import Mapping
from types import MappingProxyType

from pdr_graph.distill.answers import answers
from pdr_graph.distill.consensus import consensus
from pdr_graph.distill.critique import critique
from pdr_graph.distill.distiller import Distil, Distiller, MaxCalls, no_calls, one_call
from pdr_graph.distill.entry import Entry, draft_entry
from pdr_graph.distill.latest import latest
from pdr_graph.distill.none import none
from pdr_graph.distill.random_k import random_k
from pdr_graph.distill.summary import summary
from pdr_graph.distill.top_k import calls_per_sample, top_k, top_k_per_sample
from pdr_graph.distill.tournament import calls_of_tournament, tournament

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
