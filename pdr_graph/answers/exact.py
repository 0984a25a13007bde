"""Compares the answers that need no algebra, in microseconds.

Numbers are compared exactly, lists item by item, everything else as text in one normal spelling.
Where none of that decides, the result is None: the answers must be read as what they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_WIDE = str.maketrans("０１２３４５６７８９－−–．，（）％＋／", "0123456789---.,()%+/")


def _rewrites(*rules: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
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
# Only what math-verify misreads: it knows most spellings of LaTeX itself.
_TO_READABLE = _rewrites(
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\mathrm\s*\{([ei])\}", r"\1"),
    (r"^\s*(?:\\(?:text|textbf|mathrm)\s*\{\s*\(?[A-J]\)\s*\}|\(?[A-J]\))(?:\\ |\\quad|\s)+", ""),
)


@lru_cache(maxsize=4096)
def normal(text: str) -> str:
    """Return the normal spelling of an answer, for comparison as text."""
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
    """Repair what math-verify misreads in an answer."""
    text = text if text.isascii() else text.translate(_WIDE)
    for pattern, by in _TO_READABLE:
        text = pattern.sub(by, text)
    return text


# In characters. Longer ones are not read: int() of a million digits takes seconds, or is refused.
_LONGEST_NUMBER = 300

# A name that is given a value: x = 5, x_1 = 5, f(2) = 5. An equation such as 2a = 5 is no number.
_NAMED = re.compile(r"(\\?[A-Za-z]+(?:_\w|_\{\w+\})?(?:\(\w+\))?)=|\\approx ?|≈|=")
_PLAIN = re.compile(r"-?(?:\d+|[1-9]\d{0,2}(?:,\d{3})+)(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(
    r"""
    (?:\\?(?P<money>[$€£¥]))? (?P<sign>[-+]?) (?:\\?(?P<coin>[$€£¥]))?
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
    """Whether it has a decimal point, so that it may be rounded."""
    suffix: str = ""
    """"%", "°", a currency, a modulus, or empty."""
    name: str = ""
    """Its variable, as in x = 5; empty where none was written."""


@lru_cache(maxsize=4096)
def number(text: str) -> Number | None:
    """Read a number; None if the text is anything else."""
    if len(text) > _LONGEST_NUMBER:
        return None
    if _PLAIN.fullmatch(text):
        return Number(Fraction(text.replace(",", "")), "." in text)
    text = normal(text)
    # Brackets around a comma make a point: (32,349).
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}") and "," not in text:
        text = text[1:-1]
    name = ""
    if named := _NAMED.match(text):
        name, text = named.group(1) or "", text[named.end() :]
    found = _NUMBER.fullmatch(text.strip())
    if found is None or (value := _value(found)) is None:
        return None
    suffix = re.sub(r"\D+(?=\d)", "mod ", (found["suffix"] or "").strip(" ){}\\"))
    if suffix.startswith("mod ") and not 0 <= value < int(suffix[4:]):
        return None  # 12 mod 7 is no 12
    suffix = suffix or found["money"] or found["coin"] or ""
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
    """Compare two numbers; None where they are values of different variables."""
    if left.name and right.name and left.name != right.name:
        return None
    if left.suffix and right.suffix and left.suffix != right.suffix:
        return False
    if (left.suffix == "%") == (right.suffix == "%"):
        return _close(left.value, right.value, left, right)
    # "What percentage …": 28 and 28% are one answer, and so are 0.28 and 28%. But 0.5 is no 0.5%.
    percent = Fraction(100) if right.suffix == "%" else Fraction(1, 100)
    return _close(left.value * percent, right.value, left, right) or (
        not 0 < abs(left.value) < 1 and _close(left.value, right.value, left, right)
    )


def _close(value: Fraction, other: Fraction, left: Number, right: Number) -> bool:
    gap = abs(value - other)
    if gap == 0 or not (left.is_decimal or right.is_decimal):
        return gap == 0
    size = max(abs(value), abs(other))
    return gap <= _DECIMAL_TOLERANCE and gap <= _RELATIVE_TOLERANCE * size


# In characters.
_LONGEST_TEXT = 1000
_LONGEST_SERIES = 100
_LONGEST_LIST = 300
# Sets are compared each element with each, which is quadratic.
_MOST_ELEMENTS = 12

# An inequality: "and" and "or" are not alike in it.
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne|in)(?![A-Za-z])")
# The letter of an option, before its text.
_OPTION = re.compile(r"[\s$]*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\s*\(?([A-J])\)")
_DOTS = re.compile(r"\\[lcd]?dots|…|\.\.\.")
_WORD = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")
_JOINT = re.compile(r",? and |,? or |[,;] ?")
_NESTED = re.compile(r"\\?[{(\[]|\\?[)}\]]")
_BRACKETS = (("\\{", "\\}"), ("{", "}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"))


def equal(left: str, right: str) -> bool | None:
    """Compare two answers; None where that needs algebra."""
    if left == right:
        return bool(left)
    if _is_digits(left) and _is_digits(right):
        return left.lstrip("0") == right.lstrip("0")
    if max(len(left), len(right)) > _LONGEST_TEXT:
        return True if left.strip() == right.strip() else None
    if (
        (first := _OPTION.match(left))
        and (second := _OPTION.match(right))
        and first[1] != second[1]
    ):
        return False
    return _equal_short(left, right, depth=2)


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _equal_short(left: str, right: str, depth: int) -> bool | None:
    """Compare two answers, with lists in lists down to a depth."""
    if len(left) <= _LONGEST_NUMBER and len(right) <= _LONGEST_NUMBER:
        first, second = number(left), number(right)
        if first is not None and second is not None:
            return equal_numbers(first, second)
        depth = depth if first is None and second is None else 0
    left, right = normal(left), normal(right)
    if left == right:
        return bool(left)
    longest = max(len(left), len(right))
    if longest <= _LONGEST_SERIES and (_DOTS.search(left) or _DOTS.search(right)):
        return False  # math-verify reads a series up to its dots, or only its first term
    if _WORD.fullmatch(left) and _WORD.fullmatch(right):
        # math-verify reads words as products of letters: "listen" would be "silent".
        if left.casefold() == right.casefold():
            return True
        # Several words may say the same: "no solution" and "empty set".
        return None if " " in left + right else False
    if not depth or longest > _LONGEST_LIST or _RELATION.search(left + right):
        return None
    if "=" in left and (" or " in left) != (" or " in right):
        return None
    return _equal_lists(left, right, depth)


def _equal_lists(left: str, right: str, depth: int) -> bool | None:
    """Compare "(1, 2)" with "(1, 2.0)", and "1 and 2" with "2, 1"; None if they are not lists."""
    first, second = _elements(left), _elements(right)
    if first is None or second is None or first[0] != second[0]:
        return None
    brackets, lefts = first
    rights = second[1]
    if len(lefts) != len(rights):
        return None

    def same(pair: tuple[str, str]) -> bool:
        return _equal_short(*pair, depth - 1) is True

    if all(map(same, zip(lefts, rights, strict=True))):
        return True
    # Brackets of a point give an order, and so do variables: x = 1, y = 2.
    if depth == 2 and brackets in ("", "{}", "\\{\\}") and "=" not in left + right:
        for each in lefts:
            place = next((n for n, other in enumerate(rights) if same((each, other))), None)
            if place is None:
                return None
            del rights[place]
        return True
    return None


def _elements(text: str) -> tuple[str, list[str]] | None:
    """Return the brackets and elements of a list of two or more; None if it is no list."""
    brackets = ""
    for opening, closing in _BRACKETS:
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if _is_balanced(inner):
                brackets, text = opening + closing, inner
                break
    parts, depth, start = [], 0, 0
    for mark in re.finditer(f"{_NESTED.pattern}|{_JOINT.pattern}", text):
        if mark.group().lstrip("\\") in ("{", "(", "["):
            depth += 1
        elif mark.group().lstrip("\\") in ("}", ")", "]"):
            depth -= 1
        elif depth == 0:
            parts.append(text[start : mark.start()].strip())
            start = mark.end()
    parts.append(text[start:].strip())
    if depth != 0 or not 2 <= len(parts) <= _MOST_ELEMENTS or not all(parts):
        return None
    return brackets, parts


def _is_balanced(text: str) -> bool:
    depth = 0
    for mark in _NESTED.finditer(text):
        depth += 1 if mark.group().lstrip("\\") in ("{", "(", "[") else -1
        if depth < 0:
            return False
    return depth == 0
