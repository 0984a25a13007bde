"""Compares the answers that need no algebra, in microseconds.

Numbers are compared exactly, lists of them one by one, and all else only as text. Where none of
that decides, the answer is None, and the question goes to math-verify.
"""

from __future__ import annotations

import re

from pdr_graph.answers.notation import normal
from pdr_graph.answers.number import LONGEST_NUMBER, equal_numbers, number

_LONGEST_TEXT = 1000
_LONGEST_SERIES = 100
# A set is compared each with each, which is quadratic.
_LONGEST_LIST = 300
_MOST_ELEMENTS = 12

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
    return _equal_short(left, right, depth=2)


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _equal_short(left: str, right: str, depth: int) -> bool | None:
    """Compare two answers, lists in lists down to a depth."""
    if len(left) <= LONGEST_NUMBER and len(right) <= LONGEST_NUMBER:
        first, second = number(left), number(right)
        if first is not None and second is not None:
            return equal_numbers(first, second)
    left, right = normal(left), normal(right)
    if left == right:
        return bool(left)
    longest = max(len(left), len(right))
    if longest <= _LONGEST_SERIES and (_DOTS.search(left) or _DOTS.search(right)):
        return False  # math-verify reads a series up to its dots, or only its first term
    if _WORD.fullmatch(left) and _WORD.fullmatch(right):
        # math-verify reads words as products of letters: "listen" would be "silent".
        return left.casefold() == right.casefold()
    return _equal_lists(left, right, depth) if depth and longest <= _LONGEST_LIST else None


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
    # x = 1, y = 2 has an order even where it is not written.
    if depth == 2 and brackets in ("", "{}", "\\{\\}") and "=" not in left + right:
        found = all(any(same((a, b)) for b in rights) for a in lefts)
        if found and all(any(same((a, b)) for a in lefts) for b in rights):
            return True
    return None


def _elements(text: str) -> tuple[str, list[str]] | None:
    """Return brackets and elements of a list of two or more."""
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
