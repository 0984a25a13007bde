"""Who judges the solution: one file each, one line below."""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from pdr_graph.step import Step
from pdr_graph.types import Verdict
from pdr_graph.verify.consensus import consensus
from pdr_graph.verify.judge import judge
from pdr_graph.verify.none import none

Verify = Callable[[Step], Awaitable[Verdict]]
"""Judges `Step.solution`."""

VERIFIERS: Mapping[str, Verify] = MappingProxyType(
    {"none": none, "consensus": consensus, "judge": judge}
)

__all__ = ["VERIFIERS", "Verify"]
