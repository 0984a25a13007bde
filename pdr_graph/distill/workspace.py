"""The workspace bound: entries in, at most kappa model tokens out, whatever the entries hold.

The pieces that a workspace is made of.

What a distiller is.
"""

from asyncio import gather
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median_low

from pdr_graph.errors import WorkspaceOverflowError
from pdr_graph.llm.tokens import CUT, TokenCounter, clip
from pdr_graph.step import Step
from pdr_graph.types import Draft, Workspace


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


_LEAST_SHARE = 12
"""Tokens below which an entry says nothing."""

_TRIES = 4
"""Cuts that are tried before entries are left out; counts of parts add up to about the whole's, so
the first or second fits with any real tokenizer."""


async def pack(entries: Sequence[Entry], kappa: int, counter: TokenCounter) -> Workspace:
    """Join entries into a workspace of at most `kappa` model tokens.

    Short entries stay whole and long ones are cut to equal shares, each keeping its last line.
    Where even the shares get too small, the last entries are left out.
    """
    admitted = [entry for entry in entries if entry.text.strip() or entry.keep]
    text = _joined(admitted)
    if await counter.count(text) > kappa:
        admitted, text = await _cut_to_fit(admitted, kappa, counter)
    tokens = await counter.count(text)
    if tokens > kappa:
        raise WorkspaceOverflowError(tokens, kappa)
    return Workspace(
        text=text,
        tokens=tokens,
        estimated=counter.source == "estimate",
        sources=[source for entry in admitted for source in entry.sources],
    )


async def _cut_to_fit(
    entries: list[Entry], kappa: int, counter: TokenCounter
) -> tuple[list[Entry], str]:
    first = entries[0] if entries else Entry("")
    least = list(await gather(*(_least(entry, counter) for entry in entries)))
    while len(entries) > 1:
        while len(entries) > 1 and sum(least) > kappa:
            # One oversized last line goes by itself; otherwise the last entry makes room.
            largest = max(range(len(entries)), key=least.__getitem__)
            gone = largest if least[largest] > 2 * median_low(least) else -1
            del entries[gone], least[gone]
        if len(entries) == 1:
            break
        # What a title costs is no room for the text below it.
        titles = await gather(*(counter.count(entry.title) for entry in entries))
        floors = [whole - title - 4 for whole, title in zip(least, titles, strict=True)]
        lengths = await gather(*(counter.count(entry.text[: kappa * 16]) for entry in entries))
        spare = kappa - sum(least)
        for _ in range(_TRIES):
            limits = _shares(lengths, floors, spare)
            cut = await gather(
                *(
                    _cut(entry, length, limit, counter)
                    for entry, length, limit in zip(entries, lengths, limits, strict=True)
                )
            )
            text = _joined(cut)
            if await counter.count(text) <= kappa and all(map(_keeps, cut, entries)):
                return list(cut), text
            spare //= 2
        half = len(entries) // 2
        entries, least = entries[:half], least[:half]
    only = entries[0] if entries else first
    text = await clip(only.text, kappa, counter, keep=only.keep)
    return ([only], text) if text else ([], "")


async def _least(entry: Entry, counter: TokenCounter) -> int:
    """Return the tokens of an entry that is cut to its title and last line."""
    # Four for a blank line before it, and for what joining lines may cost.
    title = 4 + await counter.count(entry.title)
    return title + max(_LEAST_SHARE, await counter.count(f"{CUT}\n{entry.keep}"))


def _shares(lengths: Sequence[int], floors: list[int], spare: int) -> list[int]:
    """Share `spare` out: an entry that needs less than an equal part leaves it to the others."""
    beyond = [max(0, length - floor) for length, floor in zip(lengths, floors, strict=True)]
    shares = list(floors)
    by_need = sorted(range(len(lengths)), key=beyond.__getitem__)
    for position, index in enumerate(by_need):
        part = min(beyond[index], spare // (len(lengths) - position))
        shares[index] += part
        spare -= part
    return shares


async def _cut(entry: Entry, length: int, limit: int, counter: TokenCounter) -> Entry:
    if length <= limit and len(entry.text) <= limit * 16:
        return entry
    text = await clip(entry.text, limit, counter, keep=entry.keep)
    return Entry(text, entry.keep, entry.sources, entry.title)


def _keeps(cut: Entry, whole: Entry) -> bool:
    return cut.text == whole.text or cut.text.endswith(whole.keep)


def _joined(entries: Sequence[Entry]) -> str:
    return "\n\n".join(
        "\n".join(part for part in (entry.title, entry.text or entry.keep) if part)
        for entry in entries
    )


Distil = Callable[[Step], Awaitable[Sequence[Sequence[Entry]]]]
"""Turns a round of drafts into the entries of one shared workspace, or of `next_width` of them.

The bound kappa is held by the caller, so a distiller may return as much as it likes."""

MaxCalls = Callable[[int, int, int], int]
"""The most model calls for (M_r, next_width, k); budgets are planned with it."""


def no_calls(width: int, next_width: int, k: int) -> int:
    """Plan for a distiller that never asks the model."""
    return 0


def one_call(width: int, next_width: int, k: int) -> int:
    """Plan for a distiller that asks once."""
    return 1


@dataclass(frozen=True, slots=True)
class Distiller:
    """A way to compress drafts, and what it may cost."""

    distil: Distil
    max_calls: MaxCalls = one_call
