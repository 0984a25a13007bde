"""Numbers and formulas with their units.

A unit is its dimensions and its size: 5 km and 5000 m are one quantity, 5 m and 5 s are not. A noun
that is not in the table is a dimension of its own, so that 5 apples are not 5 pears. Letters are a
unit only if the text marks them as one, by LaTeX's text or by a space before a name: 2m is a
product.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

from pdr_graph.answers.expression import Tree, formula, integer, rational_tree
from pdr_graph.answers.tokens import (
    FUNCTIONS,
    GREEK,
    SPACES,
    OtherMeaningError,
    Token,
    UnreadableError,
    depth_of,
)


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts or measures."""

    dimensions: frozenset[tuple[str, int]]
    """Base dimensions with their powers, such as ("length", 2)."""
    size: Fraction = Fraction(1)
    """Size of one such unit, in base units."""


_SIZES: dict[str, tuple[str, str]] = {
    "m meter metre 米": ("length", "1"),
    "km kilometer kilometre 千米 公里": ("length", "1000"),
    "dm decimeter decimetre": ("length", "1/10"),
    "cm centimeter centimetre 厘米": ("length", "1/100"),
    "mm millimeter millimetre": ("length", "1/1000"),
    "μm micrometer micrometre": ("length", "1/1000000"),
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
def read_unit(text: str) -> Unit | None:
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
        elif times := (piece.group(1) and int(piece.group(1))) or _POWERS_AFTER.get(word):
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
    if not re.fullmatch(r"(?:[^\W\d_]{2,}|[\u3040-\u9fff])(?:[ '/-][^\W\d_]{2,}){0,5}", words):
        return None
    if any(character.isupper() for character in text[1:]):
        words = text  # mW is no MW
    head = words.split(" of ")[0]
    return Unit(frozenset([(head.removesuffix("s"), 1)]))


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or a formula, with its unit if one is written."""

    tree: Tree
    unit: Unit | None = None


PERCENT = Unit(frozenset([("percent", 1)]))


DEGREE = Unit(frozenset([("degree", 1)]))


_SYMBOL_UNITS = {
    r"\$": "$",
    "€": "€",
    "£": "£",
    "¥": "¥",
    "₹": "₹",
    r"\cent": "¢",
    r"\pounds": "£",
    r"\euro": "€",
}


# Letters beside a number that cannot be a product of variables.
_GLUED = frozenset(["cm", "km", "kg", "mm", "mph"])


_MONTH_WORDS = (
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sept sep oct nov dec"
)
MONTHS = _MONTH_WORDS.split()
"""Longer names first, so that none is cut."""
_NO_NOUN = re.compile(
    r"(?i)\b(?:\w{2,}ed|below|above|under|beyond|negative|positive|tens|twice|double|triple|percent|root|power|th|st|nd|rd|squared|cubed|factorial|times|plus|minus|over|divided|more|less|least|most|fewer|or|and|not"
    r"|if|is|are|unless|except|to|than|base|mod|modulo|hundredths?|thousandths?|millionths?|billionths?"
    r"|tenths?|halves|half|thirds?|quarters?|fourths?|fifths?|remainder|r|from|between|solutions?"
    rf"|no|pas|nicht|oder|ou|und|et|{'|'.join(MONTHS)})\b|不|没|ない|아니|아닙|或"
)


def quantity_of(parts: list[Token]) -> Quantity:
    """Read a formula with its unit."""
    parts, money = _without_money(parts)
    depths = accumulate(map(depth_of, parts))
    outside = [n for n, depth in enumerate(depths) if n and depth == max(0, depth_of(parts[n]))]
    place = next((n for n in outside if _starts_unit(parts, n)), len(parts))
    tree = formula(parts[:place])
    if place == len(parts):
        unit = money
    else:
        tree, unit = _measured(tree, parts[place:])
        if money is not None:
            if unit is not None and unit != money:
                raise UnreadableError("money with a second unit is not understood")
            unit = money
    if unit is None and tree[0] == "percent":
        return Quantity(tree[1], PERCENT)
    if unit is None and tree[0] == "neg" and tree[1][0] == "percent":
        return Quantity(("neg", tree[1][1]), PERCENT)
    if unit is None and tree[0] == "deg":
        return Quantity(tree[1], DEGREE)
    if unit is None and tree[0] == "neg" and tree[1][0] == "deg":
        return Quantity(("neg", tree[1][1]), DEGREE)
    if unit is None and tree[0] == "mul" and tree[2][0] == "deg":
        return Quantity(("mul", tree[1], tree[2][1]), DEGREE)
    if tree[0] == "deg" and unit is not None:
        return Quantity(tree[1], unit)
    return Quantity(tree, unit)


def _without_money(parts: list[Token]) -> tuple[list[Token], Unit | None]:
    for place in (0, 1, len(parts) - 1):
        if 0 <= place < len(parts) and (symbol := _SYMBOL_UNITS.get(parts[place].text)):
            if place == 1 and parts[0].text not in ("-", "+"):
                continue
            return parts[:place] + parts[place + 1 :], read_unit(symbol)
    return parts, None


def _starts_unit(parts: list[Token], place: int) -> bool:
    """Tell whether a unit begins here: words, or a unit's name after a number and a space."""
    part = parts[place]
    if part.kind == "words":
        return bool(part.text.strip())
    if part.text == r"\mu":
        return place + 1 < len(parts) and parts[place + 1].kind == "words"
    if part.text in (r"\frac", r"\dfrac", r"\tfrac"):  # m/s as a fraction
        return (
            place + 2 < len(parts)
            and parts[place + 1].text == "{"
            and parts[place + 2].kind == "words"
        )
    if part.kind != "letters" or len(part.text) == 1:
        return False
    before = [each for each in parts[:place] if each.text not in ("-", "+")]
    is_number = all(
        each.kind == "number" or each.text in ("/", "{", "}", r"\frac", r"\cdot", r"\times", "^")
        for each in before
    )
    if not is_number or not before:
        return False
    word = part.text
    if not part.spaced:
        return word in _GLUED or (len(word) > 3 and is_known(word))
    follows = [each for each in parts[place:] if each.kind != "letters"]
    is_noun = len(word) > 3 and not follows and word not in GREEK and word not in FUNCTIONS
    return is_noun or is_known(word)


def _measured(tree: Tree, parts: list[Token]) -> tuple[Tree, Unit | None]:
    """Read the unit after a number, with its scale: million dollars."""
    again = next((n for n in range(1, len(parts)) if _starts_number(parts, n)), len(parts))
    if any(
        part.text in ("+", "-", "=") and parts[place - 1].text not in ("^", "{")
        for place, part in enumerate(parts)
    ):
        raise OtherMeaningError("an operation follows the unit")
    text = _unit_text(parts[:again])
    if again < len(parts):
        text = re.sub(r"[,\s]*(?:\band)?$", "", text)
    degrees = tree[0] == "deg"
    while (word := text.split(" ", 1)[0]) and (times := scale(word)):
        tree, text = ("mul", tree, integer(times)), text[len(word) :].strip()
    text = re.sub(r"(?i)^(?:percentage|percent|pct)(?: points?)?$", "%", text)
    if text == "%":
        return tree, PERCENT
    if not text:
        return tree, None
    if _NO_NOUN.search(text) or (text.startswith("(") and _known(text) is None):
        raise OtherMeaningError(f"{text!r} is no unit")
    if degrees or re.match(r"(?i)(?:degrees?|°) ?(?:celsius|fahrenheit|[CF]\b)", text):
        text = "°" + (
            "C"
            if re.search(r"(?i)c(?:elsius)?$", text)
            else "F"
            if re.search(r"(?i)f(?:ahrenheit)?$", text)
            else text
        )
    unit = read_unit(text)
    if unit is None:
        raise UnreadableError(f"{text!r} is no unit")
    if again == len(parts):
        return tree, unit
    rest = quantity_of(parts[again:])
    if rest.unit is None or rest.unit.dimensions != unit.dimensions:
        raise UnreadableError("a second number follows the unit")
    share = rational_tree(rest.unit.size / unit.size)
    return ("add", tree, ("mul", rest.tree, share)), unit


def _starts_number(parts: list[Token], place: int) -> bool:
    before = parts[place - 1].text
    return (
        parts[place].kind == "number"
        and before not in ("^", "-")
        and not (before == "{" and place > 1 and parts[place - 2].text == "^")
    )


def _unit_text(parts: list[Token]) -> str:
    pieces = []
    for part in parts:
        if part.kind == "command" and part.text not in (
            r"\cdot",
            r"\mu",
            r"\times",
            r"\circ",
            r"\$",
            r"\frac",
            r"\%",
        ):
            raise UnreadableError(f"{part.text!r} is not understood in a unit")
        pieces.append(
            {r"\cdot": "·", r"\times": "·", r"\circ": "°"}.get(part.text, part.text)
            if part.kind == "command"
            else (" " if part.spaced else "") + part.text
        )
    text = SPACES.sub(" ", "".join(pieces)).strip(" ,.~")
    text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\mu\s*", "μ", text)
    return re.sub(r"\^\s*\{?\s*°\s*\}?", "°", text)
