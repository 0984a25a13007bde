"""Answers that are no formula: words, times, dates, numerals of a base."""

from __future__ import annotations

import re
from fractions import Fraction

from pdr_graph.answers.expression import INFINITY, formula, integer, numeral, rational_tree
from pdr_graph.answers.quantity import MONTHS, Quantity, scale
from pdr_graph.answers.tokens import SPACES, Token, UnreadableError, text_of, word_set
from pdr_graph.answers.values import (
    EMPTY,
    LINE,
    ClockTime,
    Numeral,
    RealSet,
    Value,
    WordAnswer,
)

_CLOCK = re.compile(
    r"(\d{1,2})(?::(\d\d))?(?::(\d\d))?\s*(?:([ap])\.?\s?m\.?)?(?:\s*\(?(?:today|tomorrow)\)?)?",
    re.I,
)


_PARTS = {
    "in the morning": "a.m.",
    "in the afternoon": "p.m.",
    "in the evening": "p.m.",
    "o'clock": ":00",
}


def clock_time(text: str) -> ClockTime | None:
    """Read a time of day, such as "3:45 PM" or "15:45"; None if the text is none."""
    if len(text) > 40:
        return None
    if text.strip().lower() in ("noon", "12 noon", "midnight", "12 midnight"):
        is_noon = "noon" in text.lower()
        return ClockTime(12 * 3600 * is_noon, "p" if is_noon else "a", (12,))
    if ":" not in text and not re.search(r"(?i)\d\s*(?:[ap]\.?\s?m\b|o'clock|in the)", text):
        return None
    for part, half in _PARTS.items():
        text = text.replace(part, half)
    found = _CLOCK.fullmatch(
        text.strip().rstrip(".") + ("." if text.strip().endswith("m.") else "")
    )
    if found is None:
        return None
    hours, minutes, seconds = (int(found[n] or 0) for n in (1, 2, 3))
    half = (found[4] or "").lower()
    if minutes > 59 or seconds > 59 or hours > 24 or (half and not 1 <= hours <= 12):
        return None
    if half:
        hours = hours % 12 + 12 * (half == "p")
    terms = tuple(int(found[n]) for n in (1, 2, 3) if found[n])
    return ClockTime((hours * 60 + minutes) * 60 + seconds, half, terms)


_SMALL_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_SMALL = {word: value for value, word in enumerate(_SMALL_WORDS.split())}


_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * value for value, word in enumerate(_TENS_WORDS.split(), 2)}


_FRACTIONS = {
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}


def number_in_words(text: str) -> Fraction | None:
    """Read "twenty-five", "three hundred and two" or "two thirds"; None if it is anything else."""
    words = text.lower().replace("-", " ").replace(", ", " ").split()
    if len(words) > 1 and words[0] in ("negative", "minus"):
        value = number_in_words(" ".join(words[1:]))
        return None if value is None else -value
    if not 1 <= len(words) <= 12 or not words[0].isalpha():
        return None
    part = _FRACTIONS.get(words[-1]) or _FRACTIONS.get(words[-1].removesuffix("s"))
    if part and len(words) > 1:
        whole = number_in_words(" ".join(words[:-1])) if words[:-1] != ["a"] else Fraction(1)
        return whole / part if whole is not None and whole < part else None
    total, group, before = 0, 0, ""
    for word in words:
        if word in _SMALL and before not in _SMALL:
            group += _SMALL[word]
        elif word in _TENS and before not in _SMALL and before not in _TENS:
            group += _TENS[word]
        elif word == "hundred" and 0 < group < 10:
            group *= 100
        elif (times := scale(word)) and times >= 1000 and group:
            total, group = total + group * times, 0
        elif word != "and" or before not in ("hundred", "thousand", "million"):
            return None
        before = word
    return Fraction(total + group) if before != "and" else None


_PHRASES: dict[str, Value] = {}


for _phrases, _value in (
    ("no solution|no solutions|no real solution|no real solutions|there is no solution|there are "
     "no solutions|empty set|the empty set|no such values exist|no real roots", RealSet(EMPTY)),
    ("all real numbers|all reals|all real x|any real number|all real values|real numbers|the real "
     "numbers|every real number|all real values of x|the set of all real numbers|the set of real "
     "numbers|all x", RealSet(LINE)),
    ("all integers|any integer|integers|the integers|every integer", WordAnswer("all integers")),
    ("all rational numbers|rational numbers|all rationals", WordAnswer("all rational numbers")),
    ("all natural numbers|natural numbers", WordAnswer("all natural numbers")),
    ("all complex numbers|complex numbers", WordAnswer("all complex numbers")),
    ("does not exist|dne|undefined|is undefined|not defined", WordAnswer("does not exist")),
    ("infinitely many|infinitely many solutions|infinite solutions|an infinite number of solutions",
     WordAnswer("infinitely many")),
    ("infinity|positive infinity|plus infinity", Quantity(INFINITY)),
    ("negative infinity|minus infinity", Quantity(("neg", INFINITY))),
):  # fmt: skip
    _PHRASES.update(dict.fromkeys(_phrases.split("|"), _value))


NUMBER_SETS: dict[str, Value] = {
    "R": RealSet(LINE),
    "Z": WordAnswer("all integers"),
    "Q": WordAnswer("all rational numbers"),
    "N": WordAnswer("all natural numbers"),
    "C": WordAnswer("all complex numbers"),
}
"""By the letter after mathbb."""


TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf)|mbox|hbox)\s*\{([^{}]*)\}"
)


_WORDS = re.compile(r"[^\W\d_]+(?:(?:['.-][ ]?|[ ])[^\W\d_]+)*")


# Two letters that are a word, and so no product.
_SHORT_WORDS = word_set(
    "no on is as in if it he we up us am be do go hi me my of ok or so to ya oh"
)


_MATH_WORDS = re.compile(
    r"(?:pi|oo|inf|infinity|infty|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|alpha|beta|gamma|delta|theta"
    r"|lambda|mu|phi|psi|omega|sigma|rho|tau|epsilon|[A-Za-z])"
)


# In letters, of a word with a hyphen.
_SHORTEST_PART = 3
_CALL = re.compile(r"(?:sin|cos|tan|cot|ln|log|sqrt) [A-Za-z]{1,3}$")


_LONGEST_NUMERAL = 200
_NUMERAL = re.compile(
    r"(-?)\(?([0-9A-F]*\d[0-9A-F]*|[A-F]{2,})\)?\s*"
    r"(?:_\{?\(?\s*(?:base\s*)?(\w+)\s*\)?\}?|\(?\s*(?:in )?base[ -](\w+)\)?)"
)


_ORDINAL = re.compile(r"(\d+)\s*\^?\s*\{?\s*(?:st|nd|rd|th)\s*\}?")


_DATE = re.compile(
    rf"(?i)(?:(?P<m1>{'|'.join(MONTHS)})\s+(?P<d1>\d{{1,2}})|(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?"
    rf"(?P<m2>{'|'.join(MONTHS)}))(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?"
)


def plain_text(text: str) -> str:
    """Return the text without LaTeX's boxes and spaces."""
    for _ in range(3):
        text, count = TEXT.subn(r"\1", text)
        if not count:
            break
    return SPACES.sub(" ", text).strip()


def phrase(plain: str) -> Value | None:
    """Read words that stand for something else, such as "no solution" or "twelve"."""
    low = plain.casefold().rstrip(".!")
    if known := _PHRASES.get(low):
        return known
    if (value := number_in_words(low)) is not None:
        return Quantity(rational_tree(value))
    if ordinal := _ORDINAL.fullmatch(plain):
        return Quantity(integer(int(ordinal[1])))
    return None


def numeral_of(plain: str) -> Value | None:
    """Read digits with their base, such as 1010_2 or "37 base 8"; None if there is no base.

    Raises:
        UnreadableError: The digits are not of that base.
    """
    found = _NUMERAL.fullmatch(plain) if len(plain) < _LONGEST_NUMERAL else None
    if found is None:
        return None
    base = found[3] or found[4]
    number = _SMALL.get(base.lower()) or (int(base) if base.isdigit() else 0)
    tree = numeral(found[2], str(number))
    tree = ("neg", tree) if found[1] else tree
    return Numeral(found[1] + found[2].lstrip("0"), number, tree)


def time_or_date(plain: str) -> Value | None:
    """Read a time of day, or a day of the year in words; None if the text is neither."""
    if time := clock_time(plain):
        return time
    if found := _DATE.fullmatch(plain):
        month = (found["m1"] or found["m2"]).lower()[:3]
        return WordAnswer(
            " ".join(filter(None, (month, str(int(found["d1"] or found["d2"])), found["year"])))
        )
    return None


def words_of(parts: list[Token]) -> Value | None:
    """Read words; None if they are mathematics."""
    if any(
        part.kind not in ("words", "letters") and part.text not in (".", "-", "'") for part in parts
    ):
        return None
    text = SPACES.sub(" ", text_of(parts)).strip(" .!")
    if known := phrase(text) or time_or_date(text):
        return known
    runs = re.findall(r"[^\W\d_]+", text)
    as_text = any(part.kind == "words" for part in parts)
    if not runs or not _WORDS.fullmatch(text):
        return None
    if len(runs) == 1 and len(text) == 1:
        return Quantity(("name", text)) if text not in "ei" else Quantity(("const", text))
    if not as_text and (all(map(_MATH_WORDS.fullmatch, runs)) or _CALL.match(text)):
        return None
    if not as_text and "-" in text and min(map(len, runs)) < _SHORTEST_PART:
        return None  # n-an is a difference
    folded = text.casefold()
    if as_text or len(runs) > 1 or len(text) > 3:
        return WordAnswer(folded)
    if text.lower() in _SHORT_WORDS:
        return WordAnswer(folded)
    if len(text) == 2 and text.islower():
        return Quantity(formula(parts))
    try:
        return WordAnswer(folded, formula(parts))
    except UnreadableError:
        return WordAnswer(folded)
