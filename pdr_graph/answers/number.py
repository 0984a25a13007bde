"""Reads numbers as they are written in answers, and compares them exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from pdr_graph.answers.notation import normal

# Longer ones are never read: int() of a million digits takes seconds, and Python refuses it.
LONGEST_NUMBER = 300
"""In characters."""

# A name that is given a value: x = 5, x_1 = 5, f(2) = 5. An equation such as 2a = 5 is no number.
_NAMED = re.compile(r"(\\?[A-Za-z]+(?:_\w|_\{\w+\})?(?:\(\w+\))?)=|\\approx ?|≈|=")
_PLAIN = re.compile(r"-?(?:\d+|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(
    r"""
    (?:\\?[$€£¥])? (?P<sign>[-+]?) (?:\\?[$€£¥])?
    (?: (?P<whole>\d+) (?:\ (?P<n1>\d+)/(?P<d1>\d+) | \\frac\{(?P<n2>\d+)\}\{(?P<d2>\d+)\})
      | (?P<n3>-?\d+)/(?P<d3>\d+)
      | \\frac\{(?P<n4>-?\d+)\}\{(?P<d4>-?\d+)\}
      | (?P<integer>[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:\ \d{3})+|\d*)
        (?:\.(?P<part>\d*))?
    )
    (?P<suffix>%|°|\\?\$|\ ?\(mod\ ?\d+\)|\ ?\\pmod\{?\d+\}?|\ ?\\bmod\ ?\d+)?
    """,
    re.VERBOSE | re.ASCII,
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
    suffix: str = ""
    """"%", "°", a modulus, or nothing."""
    name: str = ""
    """What it is the value of, where that was written."""


@lru_cache(maxsize=4096)
def number(text: str) -> Number | None:
    """Read a number; None if the text is anything else."""
    if len(text) > LONGEST_NUMBER:
        return None
    if _PLAIN.fullmatch(text):
        return Number(Fraction(text.replace(",", "")), "." in text)
    text = normal(text)
    # (32,349) is a point.
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}") and "," not in text:
        text = text[1:-1]
    name = ""
    if named := _NAMED.match(text):
        name, text = named.group(1) or "", text[named.end() :]
    found = _NUMBER.fullmatch(text.strip())
    if found is None or (value := _value(found)) is None:
        return None
    suffix = re.sub(r"\D+(?=\d)", "mod ", (found["suffix"] or "").strip(" ){}\\$"))
    value = -value if found["sign"] == "-" else value
    return Number(value, bool(found["part"]), suffix, name)


def _value(found: re.Match[str]) -> Fraction | None:
    for above, below in (("n1", "d1"), ("n2", "d2"), ("n3", "d3"), ("n4", "d4")):
        if found[above] is not None:
            if int(found[below]) == 0:
                return None
            return int(found["whole"] or 0) + Fraction(int(found[above]), int(found[below]))
    digits = re.sub(r"[ ,]", "", found["integer"]) + "." + (found["part"] or "0")
    return Fraction(digits) if found["integer"] or found["part"] else None


def equal_numbers(left: Number, right: Number) -> bool | None:
    """Compare two numbers; None where they are values of different names."""
    if left.name and right.name and left.name != right.name:
        return None
    if left.suffix and right.suffix and left.suffix != right.suffix:
        return False
    scales = [Fraction(1)]
    if (left.suffix == "%") != (right.suffix == "%"):
        # "What percentage …": 28 and 28% are one answer, and so are 0.28 and 28%.
        scales.append(Fraction(100) if right.suffix == "%" else Fraction(1, 100))
    return any(_close(left.value * scale, right.value, left, right) for scale in scales)


def _close(value: Fraction, other: Fraction, left: Number, right: Number) -> bool:
    gap = abs(value - other)
    if gap == 0 or not (left.is_decimal or right.is_decimal):
        return gap == 0
    size = max(abs(value), abs(other))
    return gap <= _DECIMAL_TOLERANCE and gap <= _RELATIVE_TOLERANCE * size
