"""What one check of the doctor found."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from pdr_graph.cli.failure import explain

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
    """What to do; empty where all is well."""


async def guarded(name: str, check: Callable[[], Awaitable[list[Check]]]) -> list[Check]:
    """Carry out checks; whatever they raise is a failure of the first of them, `name`."""
    try:
        return await check()
    # A boundary: the doctor reports what is wrong, and goes on with the next part.
    except Exception as error:  # noqa: BLE001
        sentence, _, remedy = explain(error).sentence.partition("; ")
        return [Check(name, "fail", sentence, remedy)]
