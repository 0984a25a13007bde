"""Makes text of a model or of a stranger safe to print.

A reply may hold escape sequences that repaint the terminal, set its title or reverse the reading
order. Sequences are removed whole, other control characters one by one; line breaks and tabs stay.
"""

import re

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC and kin: title, clipboard
    r"|\x1b[ -/]*[0-~]?"  # two-byte sequences, or a bare escape
)
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u202a-\u202e\u2066-\u2069"  # bidi embeddings and overrides: text that reads otherwise
    "\ufff9-\ufffb]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def safe(text: str) -> str:
    """Return `text` without anything that acts on a terminal, and encodable as UTF-8."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROLS.sub("", _SEQUENCES.sub("", text))
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """Return safe text with all white space folded into single spaces."""
    return " ".join(safe(text).split())
