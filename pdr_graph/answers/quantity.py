"""Units, money, scale words, clock times and numbers in words.

A unit is its dimensions and its size: 5 km and 5000 m are one quantity, 5 m and 5 s are not. A noun
that is no unit of the table is a dimension of its own, so that 5 apples are not 5 pears.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts or measures."""

    dimensions: frozenset[tuple[str, int]]
    """Base dimensions with their powers, such as ("length", 2)."""
    size: Fraction = Fraction(1)
    """Of one such unit, in base units."""


_SIZES: dict[str, tuple[str, str]] = {
    "m meter metre 米": ("length", "1"),
    "km kilometer kilometre 千米 公里": ("length", "1000"),
    "dm decimeter decimetre": ("length", "1/10"),
    "cm centimeter centimetre 厘米": ("length", "1/100"),
    "mm millimeter millimetre": ("length", "1/1000"),
    "nm nanometer nanometre": ("length", "1/1000000000"),
    "in inch inches": ("length", "127/5000"),
    "ft foot feet": ("length", "381/1250"),
    "yd yard": ("length", "1143/1250"),
    "mi mile": ("length", "201168/125"),
    "g gram gramme": ("mass", "1/1000"),
    "mg milligram": ("mass", "1/1000000"),
    "kg kilogram kilo kgs 千克 公斤": ("mass", "1"),
    "t tonne": ("mass", "1000"),
    "lb lbs pound": ("mass", "45359237/100000000"),
    "oz ounce": ("mass", "45359237/1600000000"),
    "s sec second secs": ("time", "1"),
    "ms millisecond": ("time", "1/1000"),
    "min minute mins 分钟": ("time", "60"),
    "h hr hour hrs 小时": ("time", "3600"),
    "d day 天": ("time", "86400"),
    "week wk": ("time", "604800"),
    "month": ("month", "1"),
    "year yr yrs": ("month", "12"),
    "decade": ("month", "120"),
    "century centuries": ("month", "1200"),
    "l L liter litre": ("length^3", "1/1000"),
    "ml mL milliliter millilitre": ("length^3", "1/1000000"),
    "gal gallon": ("gallon", "1"),
    "qt quart": ("gallon", "1/4"),
    "pt pint": ("gallon", "1/8"),
    "cup": ("gallon", "1/16"),
    "mph": ("length time^-1", "201168/450000"),
    "kph kmh": ("length time^-1", "1000/3600"),
    "deg degree °": ("degree", "1"),
    "rad radian": ("radian", "1"),
    "°C C Celsius": ("celsius", "1"),
    "°F F Fahrenheit": ("fahrenheit", "1"),
    "K kelvin": ("kelvin", "1"),
    "$ dollar USD buck": ("dollar", "1"),
    "cent ¢": ("dollar", "1/100"),
    "€ euro EUR": ("euro", "1"),
    "£ GBP": ("sterling", "1"),
    "yuan RMB CNY 元 块": ("yuan", "1"),
    "¥ yen JPY 円": ("yen", "1"),
    "₹ rupee Rs": ("rupee", "1"),
    "N newton": ("mass length time^-2", "1"),
    "J joule": ("mass length^2 time^-2", "1"),
    "kJ kilojoule": ("mass length^2 time^-2", "1000"),
    "W watt": ("mass length^2 time^-3", "1"),
    "kW kilowatt": ("mass length^2 time^-3", "1000"),
    "Pa pascal": ("mass length^-1 time^-2", "1"),
    "Hz hertz": ("time^-1", "1"),
    "V volt": ("volt", "1"),
    "A amp ampere": ("ampere", "1"),
    "mol mole": ("mol", "1"),
    "acre": ("acre", "1"),
}


def _dimensions(text: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for part in text.split():
        name, _, power = part.partition("^")
        found[name] += int(power or 1)
    return found


_UNITS: dict[str, tuple[Counter[str], Fraction]] = {}
for _names, (_kind, _size) in _SIZES.items():
    for _name in _names.split():
        _UNITS[_name] = _dimensions(_kind), Fraction(_size)
        if len(_name) > 2 and not _name.endswith("s"):
            _UNITS[_name + "s"] = _UNITS[_name]

_SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_POWERS_AFTER = {"squared": 2, "cubed": 3}
# "units" says that there is one, and not which.
_NO_UNIT = frozenset(["unit", "units"])
_PIECE = re.compile(r"\^?\s*\{?\s*(-?\d+)\s*\}?|[^\W\d_]+|[°€£¥₹¢$]+[A-Z]?|/|\S")
_LONGEST_UNIT = 80


@lru_cache(maxsize=1024)
def unit(text: str) -> Unit | None:
    """Read a unit, such as "cm^2", "miles per hour" or "apples"; None if the text is none."""
    text = text.replace("\\$", "$").replace(".", "").strip(" ,;:")
    if not text or len(text) > _LONGEST_UNIT:
        return None
    return _known(text) or _noun(text)


def is_known(word: str) -> bool:
    """Tell whether a word is a unit of the table, or a scale."""
    return _lookup(word) is not None or word in _SCALES or word in _POWERS or word in _NO_UNIT


def scale(word: str) -> int | None:
    """Return the value of a word such as "million"; None if it is none."""
    return _SCALES.get(word.lower().removesuffix("s"))


def _lookup(word: str) -> tuple[Counter[str], Fraction] | None:
    return _UNITS.get(word) or (_UNITS.get(word.lower()) if len(word) > 2 else None)


def _known(text: str) -> Unit | None:
    found: Counter[str] = Counter()
    size, sign, power = Fraction(1), 1, 1
    last: tuple[Counter[str], Fraction, int] | None = None
    for piece in _PIECE.finditer(text):
        word = piece.group()
        if word in ("·", "*", "-", "(", ")", "\\", "{", "}"):
            continue
        if word in ("/", "per"):
            sign = -1
        elif word in _POWERS:
            power = _POWERS[word]
        elif word in _NO_UNIT and last is None:
            last = Counter({"unit": 1}), Fraction(1), sign * power
            found["unit"] += power
        elif times := piece.group(1) and int(piece.group(1)) or _POWERS_AFTER.get(word):
            # The unit before has been counted once.
            if last is None or abs(times) > 6:
                return None
            for name, count in last[0].items():
                found[name] += count * last[2] * (times - 1)
            size *= last[1] ** (last[2] * (times - 1))
        elif known := _lookup(word):
            last = *known, sign * power
            for name, count in known[0].items():
                found[name] += count * sign * power
            size *= known[1] ** (sign * power)
            power = 1
        elif last is not None and sign == 1:
            break  # 5 feet tall, 12 pounds of apples
        else:
            return None
    if last is None:
        return None
    return Unit(frozenset((name, count) for name, count in found.items() if count), size)


def _noun(text: str) -> Unit | None:
    words = re.sub(r"\s+", " ", text).strip().lower()
    if not re.fullmatch(r"[^\W\d_]{2,}(?:[ '/-][^\W\d_]{2,}){0,5}", words):
        return None
    head = words.split(" of ")[0]
    return Unit(frozenset([(head.removesuffix("s"), 1)]))


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


@dataclass(frozen=True, slots=True)
class ClockTime:
    """A time of day."""

    seconds: int
    """Since midnight; where no half of the day is said, as the clock shows."""
    half: str
    """"a", "p", or empty where none is said."""
    terms: tuple[int, ...]
    """As it was written: 7:32 may also be a ratio."""


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


def same_time(left: ClockTime, right: ClockTime) -> bool:
    """Compare two times of day; the half of the day may be left off."""
    if bool(left.half) == bool(right.half):
        return left.seconds == right.seconds
    said, bare = (left, right) if left.half else (right, left)
    noon = 12 * 3600
    on_the_dial = bare.seconds < noon + 3600 and bare.seconds % noon == said.seconds % noon
    return said.seconds == bare.seconds or on_the_dial


_SMALL = {word: value for value, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen".split())}  # fmt: skip
_TENS = {word: 10 * value for value, word in enumerate(
    "twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}  # fmt: skip
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
    words = text.lower().replace("-", " ").split()
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
        elif (times := _SCALES.get(word)) and times >= 1000 and group:
            total, group = total + group * times, 0
        elif word != "and" or before not in ("hundred", "thousand", "million"):
            return None
        before = word
    return Fraction(total + group) if before != "and" else None
