"""A stated, conservative estimate of token counts, for servers that count nothing for us.

A tokenizer splits text at changes of letter case, digits, marks and white space, and spends at
least a token on each piece. We charge a token for every 3 letters begun in a piece, for every
digit, mark and line break, and for every UTF-8 byte beyond ASCII. On English prose that is about
1.5 times the truth; byte-level tokenizers stay below it on the texts of `tests/llm`.
"""

import re

_PIECES = re.compile(r"[A-Z]+|[a-z]+|[^\x00-\x7f]+|[ ]+|[^A-Za-z ]")


def estimate_tokens(text: str) -> int:
    """Return a conservative estimate of the length of `text` in model tokens."""
    return sum(_cost(piece) for piece in _PIECES.findall(text))


def _cost(piece: str) -> int:
    first = piece[0]
    if first == " ":
        return (len(piece) - 1 + 3) // 4  # one space belongs to the word after it
    if first > "\x7f":
        return len(piece.encode("utf-8", "surrogatepass"))
    if first.isalpha():
        return (len(piece) + 2) // 3
    return len(piece)
