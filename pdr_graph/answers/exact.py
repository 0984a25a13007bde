"""Compares the answers that need no algebra, in microseconds.

Numbers (integers, fractions, decimals, mixed numbers) are compared exactly, and all else only as
text. Where neither decides, the answer is None, and the question goes to math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# What is longer is compared as digits or as text, never read as a number: int() of a million
# digits takes seconds, and Python refuses beyond 4300.
_LONGEST_NUMBER = 300

_WIDE = str.maketrans("０１２３４５６７８９－−–．，（）％＋／", "0123456789---.,()%+/")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\!\s*|\\[,:;]|\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\q?quad(?![A-Za-z])|\\ |~|\s+", " "),
        (r"\{,\}", ","),
        (r"\\[cdt]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s+(\d)\s*(\{|\d)", r"\\frac{\1}\2"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1"),
        (r"\\geq(?![A-Za-z])", r"\\ge"),
        (r"\\leq(?![A-Za-z])", r"\\le"),
        (r"\\%|\s*(?:percent(?:age)?|pct)\b", "%"),
        (r"(?:\^\s*\{?\s*\\circ\s*\}?|°|\\degree)", "°"),
        # The letter of a multiple-choice answer, before the answer itself.
        (r"^\s*\(?[A-J]\)\s+(?=[-\d\\$])", ""),
        (r" *([{}()\[\],=+\-*/^_<>|&%°]) *", r"\1"),
    )
)
# What math-verify misreads, and the other rewrites would not improve for it.
_REPAIRS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\mathrm\s*\{([ei])\}", r"\1"),
        (
            r"^\s*(?:\\(?:text|textbf|mathrm)\s*\{\s*\(?[A-J]\)\s*\}|\(?[A-J]\))(?:\\ |\\quad|\s)+",
            "",
        ),
    )
)
_DOTS = re.compile(r"\\[lcd]?dots|…|\.\.\.")
_WORD = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")

_NAMED = re.compile(r"(?:[A-Za-z\\][^=<>,;:]{0,30}=|\\approx ?|≈|=)(?=[^=<>,;]+$)")
_NUMBER = re.compile(
    r"""
    [$€£¥]? (?P<sign>[-+]?) [$€£¥]?
    (?: (?P<whole>\d+) (?:\ (?P<n1>\d+)/(?P<d1>\d+) | \\frac\{(?P<n2>\d+)\}\{(?P<d2>\d+)\})
      | (?P<n3>-?\d+)/(?P<d3>\d+)
      | \\frac\{(?P<n4>-?\d+)\}\{(?P<d4>-?\d+)\}
      | (?P<integer>\d{1,3}(?:,\d{3})+|\d{1,3}(?:\ \d{3})+|\d*) (?P<point>\.?) (?P<part>\d*)
    )
    (?P<suffix>%|°|\\?\$|\ ?\(mod\ ?\d+\)|\ ?\\pmod\{?\d+\}?|\ ?\\bmod\ ?\d+)?
    """,
    re.VERBOSE,
)

# As math-verify rounds: 0.333333 is 1/3, and 0.3333 is not. The second bound keeps 1e-9 from 2e-9.
_DECIMAL_TOLERANCE = Fraction(5, 10**7)
_RELATIVE_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True, slots=True)
class Number:
    """A number as it was written."""

    value: Fraction
    is_decimal: bool
    """Written with a decimal point, so perhaps rounded."""
    suffix: str
    """"%", "°", a modulus, or nothing."""


def equal(left: str, right: str) -> bool | None:
    """Compare two answers; None where that needs algebra."""
    if left == right:
        return bool(left)
    if len(left) > _LONGEST_NUMBER or len(right) > _LONGEST_NUMBER:
        return _equal_long(left, right)
    first, second = number(left), number(right)
    if first is not None and second is not None:
        return _equal_numbers(first, second)
    left, right = normal(left), normal(right)
    if left == right:
        return bool(left)
    if _DOTS.search(left) or _DOTS.search(right):
        return False  # a series that goes on is read by nobody
    if _WORD.fullmatch(left) and _WORD.fullmatch(right):
        # math-verify reads words as products of letters: "listen" would be "silent".
        return left.casefold() == right.casefold()
    return None


def _equal_long(left: str, right: str) -> bool | None:
    left, right = left.strip(), right.strip()
    if left.isdecimal() and right.isdecimal():
        return left.lstrip("0") == right.lstrip("0")
    return True if left == right else None


def _equal_numbers(left: Number, right: Number) -> bool:
    if left.suffix and right.suffix and left.suffix != right.suffix:
        return False
    scales = (Fraction(1),)
    if (left.suffix == "%") != (right.suffix == "%"):
        # "What percentage …": 28 and 28% are one answer, and so are 0.28 and 28%.
        scales = (Fraction(1), Fraction(100) if right.suffix == "%" else Fraction(1, 100))
    return any(_close(left.value * scale, right, left.is_decimal) for scale in scales)


def _close(value: Fraction, other: Number, is_decimal: bool) -> bool:
    gap = abs(value - other.value)
    if gap == 0 or not (is_decimal or other.is_decimal):
        return gap == 0
    size = max(abs(value), abs(other.value))
    return gap <= _DECIMAL_TOLERANCE and gap <= _RELATIVE_TOLERANCE * size


@lru_cache(maxsize=4096)
def number(text: str) -> Number | None:
    """Read a number; None if the text is anything else."""
    if text.isascii() and text.isdigit():
        return Number(Fraction(int(text)), False, "")
    text = normal(text)
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}"):
        text = text[1:-1]
    if named := _NAMED.match(text):
        text = text[named.end() :]
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    value = _value(found)
    if value is None:
        return None
    suffix = re.sub(r"\D+(?=\d)", "mod ", (found["suffix"] or "").strip(" ){}\\$"))
    return Number(-value if found["sign"] == "-" else value, bool(found["part"]), suffix)


def _value(found: re.Match[str]) -> Fraction | None:
    for n, d in (("n1", "d1"), ("n2", "d2"), ("n3", "d3"), ("n4", "d4")):
        if found[n] is not None:
            if int(found[d]) == 0:
                return None
            return int(found["whole"] or 0) + Fraction(int(found[n]), int(found[d]))
    digits = re.sub(r"[ ,]", "", found["integer"]) + "." + (found["part"] or "0")
    return Fraction(digits) if found["integer"] or found["part"] else None


@lru_cache(maxsize=4096)
def normal(text: str) -> str:
    """Write an answer in one of the many ways in which LaTeX lets it be written."""
    text = text.strip()
    if not text.isascii():
        text = text.translate(_WIDE)
    if "\\$" not in text:
        text = text.replace("$", "")
    text = text.removeprefix("\\(").removesuffix("\\)")
    for pattern, by in _REWRITES:
        text = pattern.sub(by, text)
    return text.strip().rstrip(".")


def readable(text: str) -> str:
    """Repair an answer for math-verify, which knows most of LaTeX's ways itself."""
    text = text if text.isascii() else text.translate(_WIDE)
    for pattern, by in _REPAIRS:
        text = pattern.sub(by, text)
    return text
