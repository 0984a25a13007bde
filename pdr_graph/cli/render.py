"""A result for people: answer, solution, verdict, ledger, and how to look closer."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from pdr_graph.cli.ledger import LedgerTable
from pdr_graph.cli.prose import Prose, unbroken
from pdr_graph.cli.text import one_line
from pdr_graph.result import Result
from pdr_graph.types import Verdict


def result_parts(result: Result, look_closer: str | None) -> Iterator[RenderableType]:
    """Yield what to print of a result.

    Args:
        result: The run.
        look_closer: The command that shows more of it; None where the run is not kept.
    """
    yield labelled("answer", answer_text(result.answer))
    yield Text()
    yield heading("solution")
    yield Prose(result.solution)
    yield Text()
    yield labelled("verdict", verdict_text(result.verdict))
    yield Text()
    yield heading("ledger")
    yield LedgerTable(result.ledger, seconds=result.seconds)
    yield Text()
    for note in result.notes:
        yield Text(f"note: {one_line(note)}", "yellow")
    yield unbroken(labelled("thread", Text(one_line(result.thread_id))))
    if look_closer is not None:
        yield unbroken(labelled("look closer", Text(look_closer)))


def heading(text: str) -> Text:
    """Return the heading of a part."""
    return Text(text, "bold")


def labelled(label: str, value: Text) -> Text:
    """Return a label and its value on one line."""
    return Text.assemble((label, "bold"), "  ", value)


def answer_text(answer: str | None) -> Text:
    """Return the answer; a solution without one is said to have none."""
    return Text("none stated", "dim") if answer is None else Text(one_line(answer), "bold green")


def verdict_text(verdict: Verdict) -> Text:
    """Return a verdict in words."""
    if verdict["verifier"] == "none":
        return Text("not judged", "dim")
    words = {True: ("accepted", "green"), False: ("rejected", "red"), None: ("undecided", "yellow")}
    by = f" by {one_line(verdict['verifier'])}"
    reason = one_line(verdict["reason"])
    return Text(*words[verdict["accepted"]]) + Text(f"{by}: {reason}" if reason else by)
