"""The cases, by letter: each measures, and lays its figures out in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.orchestration.bench import Bench
from benchmarks.orchestration.cases import (
    at_once,
    growth,
    in_flight,
    memory,
    one_run,
    tails,
)

Data = dict[str, Any]
"""A case's figures, as JSON holds them."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a title."""

    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True, slots=True)
class Case:
    """One question, how it is measured, and how the answer is shown."""

    measure: Callable[[Bench], Data]
    title: str
    table: Callable[[Data], tuple[list[str], list[list[str]]]]

    def show(self, data: Data) -> Table:
        """Lay figures out."""
        return Table(self.title, *self.table(data))


CASES: Mapping[str, Case] = {
    "a": Case(one_run.measure, one_run.TITLE, one_run.table),
    "b": Case(at_once.measure, at_once.TITLE, at_once.table),
    "c": Case(in_flight.measure, in_flight.TITLE, in_flight.table),
    "d": Case(memory.measure, memory.TITLE, memory.table),
    "e": Case(growth.measure, growth.TITLE, growth.table),
    "f": Case(tails.measure, tails.TITLE, tails.table),
}
