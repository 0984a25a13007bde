"""The workspace bound: entries in, at most kappa model tokens out, whatever the entries hold."""

from collections.abc import Sequence

from pdr_graph.clip import clip
from pdr_graph.distill.entry import Entry
from pdr_graph.errors import WorkspaceOverflowError
from pdr_graph.llm.tokens import TokenCounter
from pdr_graph.types import Workspace

_LEAST_SHARE = 12
"""Tokens below which an entry says nothing; the last entry then goes, so that the others fit."""


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
    while len(entries) > 1:
        room = kappa - 8 * len(entries)  # titles and blank lines
        while room >= _LEAST_SHARE * len(entries):
            cut = await _cut_each(entries, room, counter)
            text = _joined(cut)
            if await counter.count(text) <= kappa and all(map(_keeps, cut, entries)):
                return cut, text
            room = int(room * 0.85)
        entries = entries[:-1]
    if not entries:
        return [], ""
    text = await clip(entries[0].text, kappa, counter, keep=entries[0].keep)
    return (entries, text) if text else ([], "")


async def _cut_each(entries: list[Entry], room: int, counter: TokenCounter) -> list[Entry]:
    """Share `room` out: an entry below an equal share leaves the rest to the others."""
    shares = [await counter.count(entry.text[: room * 16]) for entry in entries]
    left, cut_at = room, dict[int, int]()
    by_length = sorted(range(len(entries)), key=shares.__getitem__)
    for position, index in enumerate(by_length):
        cut_at[index] = min(shares[index], left // (len(entries) - position))
        left -= cut_at[index]
    return [
        Entry(
            await clip(entry.text, max(1, cut_at[index]), counter, keep=entry.keep),
            entry.keep,
            entry.sources,
            entry.title,
        )
        for index, entry in enumerate(entries)
    ]


def _keeps(cut: Entry, whole: Entry) -> bool:
    return cut.text == whole.text or cut.text.endswith(whole.keep)


def _joined(entries: Sequence[Entry]) -> str:
    return "\n\n".join(
        "\n".join(part for part in (entry.title, entry.text or entry.keep) if part)
        for entry in entries
    )
