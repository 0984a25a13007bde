"""The workspace: entries in, at most kappa model tokens out, whatever the entries hold."""

from asyncio import gather
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median_low

from pdr_graph.errors import WorkspaceOverflowError
from pdr_graph.llm.tokens import CUT, TokenCounter, clip
from pdr_graph.step import closing_line
from pdr_graph.types import Draft, Workspace


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of a workspace. Its text may be cut; its closing line may not."""

    text: str
    keep: str = ""
    """The line that closes the entry where its text is cut, such as a final answer."""
    sources: tuple[int, ...] = ()
    """Indices of the drafts that it stands for."""
    title: str = ""
    """The line above its text; empty for none."""


def draft_entry(draft: Draft, *, title: str = "") -> Entry:
    """Return a draft's whole solution as an entry."""
    return Entry(draft["solution"], closing_line(draft["answer"]), (draft["index"],), title)


def numbered(drafts: list[Draft]) -> list[Entry]:
    """Return drafts as entries, numbered from 1 in the order given."""
    return [draft_entry(draft, title=f"Attempt {n}:") for n, draft in enumerate(drafts, start=1)]


_LEAST_SHARE = 12
"""Fewest tokens of an entry's text; a shorter one says nothing."""
_TRIES = 4
"""Cuts to try before entries are left out. The counts of parts add up to about that of the whole,
so the first or second fits with any real tokenizer."""


async def pack(entries: Sequence[Entry], kappa: int, counter: TokenCounter) -> Workspace:
    """Join entries into a workspace of at most `kappa` model tokens.

    Short entries stay whole. Long ones are cut to equal shares, and each keeps its closing line.
    Where the shares get too small, the last entries are left out.
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
    least = list(await gather(*(_least(entry, counter) for entry in entries)))
    while len(entries) > 1:
        while len(entries) > 1 and sum(least) > kappa:
            # Drop an entry with an oversized closing line, otherwise the last entry.
            largest = max(range(len(entries)), key=least.__getitem__)
            gone = largest if least[largest] > 2 * median_low(least) else -1
            del entries[gone], least[gone]
        if len(entries) == 1:
            break
        # The tokens of a title are not available to the text below it.
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
    text = await clip(entries[0].text, kappa, counter, keep=entries[0].keep)
    return (entries, text) if text else ([], "")


async def _least(entry: Entry, counter: TokenCounter) -> int:
    """Return the tokens of an entry that is cut to its title and closing line."""
    # Four for the blank line before it and for joining lines.
    title = 4 + await counter.count(entry.title)
    return title + max(_LEAST_SHARE, await counter.count(f"{CUT}\n{entry.keep}"))


def _shares(lengths: Sequence[int], floors: list[int], spare: int) -> list[int]:
    """Divide `spare` equally; an entry that needs less leaves the rest to the others."""
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
    return replace(entry, text=await clip(entry.text, limit, counter, keep=entry.keep))


def _keeps(cut: Entry, whole: Entry) -> bool:
    return cut.text == whole.text or cut.text.endswith(whole.keep)


def _joined(entries: Sequence[Entry]) -> str:
    return "\n\n".join(
        "\n".join(part for part in (entry.title, entry.text or entry.keep) if part)
        for entry in entries
    )
