"""Undoes the many ways in which one answer is written, without reading it as mathematics."""

from __future__ import annotations

import re
from functools import lru_cache

_Rewrites = tuple[tuple[re.Pattern[str], str], ...]

_WIDE = str.maketrans("０１２３４５６７８９－−–．，（）％＋／", "0123456789---.,()%+/")


def _rewrites(*rules: tuple[str, str]) -> _Rewrites:
    return tuple((re.compile(pattern), by) for pattern, by in rules)


_TO_NORMAL = _rewrites(
    (r"\\!\s*|\\[,:;]|\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
    (r"\\q?quad(?![A-Za-z])|\\ |~|\s+", " "),
    (r"\{,\}", ","),
    (r"\\[cdt]frac(?![A-Za-z])", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s+(\d)\s*(\{|\d)", r"\\frac{\1}\2"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
    (r"\\geq?(?![A-Za-z])|>=|≥", r"\\ge "),
    (r"\\leq?(?![A-Za-z])|<=|≤", r"\\le "),
    (r"\\neq?(?![A-Za-z])|!=|≠", r"\\ne "),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\%|\s*(?:percent(?:age)?|pct)\b", "%"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree", "°"),
    # The letter of a multiple-choice answer, before the answer itself.
    (r"^\s*\(?[A-J]\)\s+(?=[-\d\\$])", ""),
    # Not around commas: 32,349 is one number, and "32, 349" is two.
    (r" *([{}()\[\]=+\-*/^_<>|&%°]) *", r"\1"),
    (r" +", " "),
)
# What math-verify misreads, and the other rewrites would not improve for it.
_TO_READABLE = _rewrites(
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\mathrm\s*\{([ei])\}", r"\1"),
    (r"^\s*(?:\\(?:text|textbf|mathrm)\s*\{\s*\(?[A-J]\)\s*\}|\(?[A-J]\))(?:\\ |\\quad|\s)+", ""),
)


@lru_cache(maxsize=4096)
def normal(text: str) -> str:
    """Return one way of writing an answer, for comparison as text."""
    text = text.strip()
    if not text.isascii():
        text = text.translate(_WIDE)
    if "\\$" not in text:
        text = text.replace("$", "")
    text = text.removeprefix("\\(").removesuffix("\\)")
    for pattern, by in _TO_NORMAL:
        text = pattern.sub(by, text)
    return text.strip().rstrip(".")


def readable(text: str) -> str:
    """Repair an answer for math-verify, which knows most of LaTeX's ways itself."""
    text = text if text.isascii() else text.translate(_WIDE)
    for pattern, by in _TO_READABLE:
        text = pattern.sub(by, text)
    return text
