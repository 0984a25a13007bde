"""The pieces that a workspace is made of."""

from dataclasses import dataclass

from pdr_graph.types import Draft


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of a workspace; its text may be cut, its last line may not."""

    text: str
    keep: str = ""
    """A line that closes the entry if its text had to be cut, such as a final answer."""
    sources: tuple[int, ...] = ()
    """Indices of the drafts that it speaks for."""
    title: str = ""


def draft_entry(draft: Draft, *, title: str = "") -> Entry:
    """Return a draft's whole solution as an entry."""
    answer = draft["answer"]
    keep = f"Final answer: {answer}" if answer else ""
    return Entry(draft["solution"], keep, (draft["index"],), title)


def numbered(drafts: list[Draft]) -> list[Entry]:
    """Return drafts as entries, numbered from 1 in the order given."""
    return [draft_entry(draft, title=f"Attempt {n}:") for n, draft in enumerate(drafts, start=1)]
