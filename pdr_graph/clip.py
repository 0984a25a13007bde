"""Cutting text to a number of model tokens, whatever it holds.

The counter may be a server, so a cut is found in a few counts and not by trying every length.
Truncation keeps the head and, where one is given, a closing line with the final answer.
"""

from pdr_graph.llm.tokens import TokenCounter

CUT = "[...]"
"""Stands where text was left out."""

_CHARS_PER_TOKEN = 16
"""Text beyond this many characters per allowed token is dropped before anything is counted; no
tokenizer packs prose that densely, and a million characters need not cross the network."""


async def clip(text: str, limit: int, counter: TokenCounter, *, keep: str = "") -> str:
    """Cut `text` to at most `limit` model tokens.

    Args:
        text: Anything at all.
        limit: In model tokens, at least 0.
        counter: What decides the length.
        keep: A line that must survive a cut; dropped only where it alone passes the limit.
    """
    if surely_fits(text, limit):
        return text
    size = len(text)
    if size <= limit * _CHARS_PER_TOKEN:
        tokens = await counter.count(text)
        if tokens <= limit:
            return text
        size = int(size * limit / tokens)
    else:
        size = limit * _CHARS_PER_TOKEN
    if keep and not surely_fits(keep, limit // 2) and await counter.count(keep) > limit:
        keep = ""
    while True:
        shorter = _joined(text[:size].rstrip(), keep)
        tokens = await counter.count(shorter)
        if tokens <= limit:
            return shorter
        if size == 0:
            # Not even the mark fits.
            return keep if keep and await counter.count(keep) <= limit else ""
        size = min(size - 1, int(size * limit / tokens * 0.95))


def surely_fits(text: str, limit: int) -> bool:
    """Tell without counting that `text` fits: no tokenizer makes more tokens than bytes, plus one.

    The extra one is the leading space that sentencepiece models add.
    """
    return len(text) < limit and len(text.encode("utf-8", "surrogatepass")) < limit


def _joined(head: str, keep: str) -> str:
    return "\n".join(part for part in (head, CUT, keep) if part)
