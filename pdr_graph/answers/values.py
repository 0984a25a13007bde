r"""Reads an answer as what it is: a quantity, a word, a set of numbers, a list, an equation.

The kind is found before any algebra, since a word is no product of letters, and an interval is no
point. What is not understood is `UnreadableAnswer`, with the reason. The rules are in the table of
`docs/explanation/answers.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from pdr_graph.answers import quantity
from pdr_graph.answers.expression import (
    CLOSING,
    LONGEST_EXPRESSION,
    OPENING,
    OtherMeaningError,
    Token,
    Tree,
    UnreadableError,
    ascii_math,
    expression,
    integer,
    names_of,
    numeral,
    rational_tree,
    tokens,
)
from pdr_graph.answers.quantity import ClockTime, Unit


@dataclass(frozen=True, slots=True)
class UnreadableAnswer:
    """An answer that is not understood."""

    reason: str
    is_other: bool = False
    """Whether it surely is no number alone: 6 or more, 9 factorial."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or a formula, with its unit if one is written."""

    tree: Tree
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Numeral:
    """Digits with their base, such as 1010_2."""

    digits: str
    base: int
    tree: Tree


@dataclass(frozen=True, slots=True)
class WordAnswer:
    """Words, which are compared as text."""

    text: str
    """Without letter case and markup."""
    tree: Tree | None = None
    """The product of the letters, where it could be one: xy."""


@dataclass(frozen=True, slots=True)
class OptionAnswer:
    """The letter of an option with its text."""

    letter: str
    value: Value


@dataclass(frozen=True, slots=True)
class RatioAnswer:
    """Two or more numbers that are compared by their quotients, such as 3:4."""

    terms: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class ResidueAnswer:
    """A number with a modulus."""

    tree: Tree
    modulus: Tree


@dataclass(frozen=True, slots=True)
class RealSet:
    """A set of numbers, and the variable that it is of."""

    form: Tree
    """("interval", low, is_closed, high, is_closed), ("points", …), or ("union" | "inter" | "minus",
    form, form)."""
    variable: Tree | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Several answers."""

    items: tuple[Value, ...]
    brackets: str = ""
    """"()" and "[]" give an order, "{}" and none do not."""
    decimal: Tree | None = None
    """The number that 1,05 is where a comma is the decimal point."""
    num_places: int = 0
    """Figures after that comma."""


@dataclass(frozen=True, slots=True)
class NamedAnswer:
    """A value with its name: x=5, f(x)=2x."""

    name: Tree
    value: Value
    parameters: tuple[str, ...] = ()
    """Variables of a function; they are bound."""


@dataclass(frozen=True, slots=True)
class Assignments:
    """Values by name."""

    items: tuple[NamedAnswer, ...]


@dataclass(frozen=True, slots=True)
class RelationAnswer:
    """An equation, or an inequality of several variables."""

    terms: tuple[Tree, ...]
    signs: tuple[str, ...]
    """"=", "<", "<=" or "!=" between the terms."""


@dataclass(frozen=True, slots=True)
class MatrixAnswer:
    """Rows of formulas."""

    rows: tuple[tuple[Tree, ...], ...]


Value = (
    Quantity
    | Numeral
    | WordAnswer
    | OptionAnswer
    | RatioAnswer
    | ResidueAnswer
    | RealSet
    | Series
    | NamedAnswer
    | Assignments
    | RelationAnswer
    | MatrixAnswer
    | ClockTime
)

PERCENT = Unit(frozenset([("percent", 1)]))
DEGREE = Unit(frozenset([("degree", 1)]))
INFINITY: Tree = ("const", "oo")
_LINE: Tree = ("interval", ("neg", INFINITY), False, INFINITY, False)
EMPTY: Tree = ("points",)

_SIGNS = {
    "=": "=", "<": "<", r"\lt": "<", ">": ">", r"\gt": ">", "<=": "<=", r"\le": "<=", r"\leq": "<=",
    r"\leqslant": "<=", ">=": ">=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", "!=": "!=",
    r"\ne": "!=", r"\neq": "!=", r"\in": "in", r"\approx": "=", r"\equiv": "=", r"\coloneqq": "=",
}  # fmt: skip
_JOINTS = {",": ",", ";": ",", "and": "and", "or": "or", r"\lor": "or", r"\land": "and", r"\vee": "or",
           r"\wedge": "and", "&": "and", "或": "or", "和": "and", "且": "and"}  # fmt: skip
_SET_SIGNS = {r"\cup": "union", r"\bigcup": "union", r"\cap": "inter", r"\setminus": "minus",
              r"\backslash": "minus"}  # fmt: skip
_MOST_ITEMS = 40

_PHRASES: dict[str, Value] = {}
for _phrases, _value in (
    ("no solution|no solutions|no real solution|no real solutions|there is no solution|there are no "
     "solutions|empty set|the empty set|no such values exist|no real roots", RealSet(EMPTY)),
    ("all real numbers|all reals|all real x|any real number|all real values|real numbers|the real "
     "numbers|every real number|all real values of x|the set of all real numbers|the set of real "
     "numbers|all x", RealSet(_LINE)),
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
_SETS = {"R": RealSet(_LINE), "Z": WordAnswer("all integers"), "Q": WordAnswer("all rational numbers"),
         "N": WordAnswer("all natural numbers"), "C": WordAnswer("all complex numbers")}  # fmt: skip

_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf)|mbox|hbox)\s*\{([^{}]*)\}"
)
_SPACES = re.compile(r"(?:\s|~|\\[,:;!\s]|\\q?quad(?![A-Za-z]))+")
_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))
_WORDS = re.compile(r"[^\W\d_]+(?:['.-]?[ ]?[^\W\d_]+)*[.!]?")
# Two letters that are a word, and so no product.
_SHORT_WORDS = frozenset(
    "no on is as at in if it he we up us am an be by do go hi me my of ok or so to ya oh".split()
)
_MATH_WORDS = re.compile(
    r"(?:pi|oo|inf|infinity|infty|sin|cos|tan|cot|sec|csc|ln|log|exp|sqrt|alpha|beta|gamma|delta|theta"
    r"|lambda|mu|phi|psi|omega|sigma|rho|tau|epsilon|[A-Za-z])"
)
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
               "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16}  # fmt: skip
_NUMERAL = re.compile(
    r"(-?)\(?([0-9A-F]*\d[0-9A-F]*|[A-F]{2,})\)?\s*(?:_\{?\(?\s*(?:base\s*)?(\w+)\s*\)?\}?|\(?\s*(?:in )?base[ -](\w+)\)?)"
)
_ORDINAL = re.compile(r"(\d+)\s*\^?\s*\{?\s*(?:st|nd|rd|th)\s*\}?")
_OPTION = re.compile(
    r"(?:(?i:option|choice) )?\(([A-J])\)(?:\s+(\S.*))?|(?i:option|choice) ([A-J])|([A-J])[).:]\s+(\S.*)",
    re.S,
)
_MONTHS = (
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sept sep oct nov dec"
).split()
_DATE = re.compile(
    rf"(?i)(?:(?P<m1>{'|'.join(_MONTHS)})\s+(?P<d1>\d{{1,2}})|(?P<d2>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?"
    rf"(?P<m2>{'|'.join(_MONTHS)}))(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?"
)
_LEAD = re.compile(
    r"(?:approximately|about|roughly|around|exactly|approx\.?|answer:?|:|the answer is|only|equals?|US)\s*$",
    re.I,
)
_TAIL = re.compile(
    r"^[\s,(]*(?:for (?:all|any|every|each)|where|with|whenever|\(?exactly\)?|only\b|approximately)",
    re.I,
)
_RANGE = re.compile(r"^[\s,(]*for\s*$", re.I)
_NEGATION = re.compile(
    r"\b(?:not|n't|never|wrong|incorrect|false|unless|except|less|more|least|most|fewer)\b", re.I
)


@lru_cache(maxsize=8192)
def read(text: str) -> Value | UnreadableAnswer:
    """Read an answer, in LaTeX or plain text."""
    if len(text) > LONGEST_EXPRESSION:
        return UnreadableAnswer("too long to be read")
    try:
        return _answer(_undelimited(text))
    except UnreadableError as error:
        return UnreadableAnswer(str(error), isinstance(error, OtherMeaningError))


def _undelimited(text: str) -> str:
    """Remove the delimiters of mathematics; a dollar sign that is left is money."""
    text = text.strip()
    for _ in range(3):
        before = text
        for opening, closing in _DELIMITERS:
            inner = text[len(opening) : -len(closing)]
            if (
                text.startswith(opening)
                and text.endswith(closing)
                and opening not in inner
                and inner
            ):
                text = inner.strip()
        text = text.rstrip(".").rstrip() if text.endswith(".") and not text.endswith("m.") else text
        if text == before:
            break
    if "$" not in text.replace("\\$", ""):
        return text
    if re.fullmatch(r"[^$]*?-?\$[\d.][^$]*|[\d.,]+\s*\$", text):
        return text.replace("$", "\\$")
    return re.sub(r"(?<!\\)\$", " ", text)


def _plain(text: str) -> str:
    """Return the text without LaTeX's boxes and spaces."""
    for _ in range(3):
        text, count = _TEXT.subn(r"\1", text)
        if not count:
            break
    return _SPACES.sub(" ", text).strip()


def _answer(text: str) -> Value:
    plain = _plain(text)
    for reader in (_phrase, _numeral, _time_or_date, _option):
        if (value := reader(plain)) is not None:
            return value
    if (matrix := _matrix(text)) is not None:
        return matrix
    whole = _TEXT.fullmatch(text.strip())
    parts = tokens(_TEXT.sub(r"\1", text) if whole and re.search(r"\d", text) else text)
    return _list(_unreversed(_qualified(parts)))


def _phrase(plain: str) -> Value | None:
    low = plain.casefold().rstrip(".!")
    if known := _PHRASES.get(low):
        return known
    if (value := quantity.number_in_words(low)) is not None:
        return Quantity(rational_tree(value))
    if ordinal := _ORDINAL.fullmatch(plain):
        return Quantity(integer(int(ordinal[1])))
    return None


def _numeral(plain: str) -> Value | None:
    found = _NUMERAL.fullmatch(plain)
    if found is None:
        return None
    base = found[3] or found[4]
    number = _BASE_WORDS.get(base.lower()) or (int(base) if base.isdigit() else 0)
    tree = numeral(found[2], str(number))
    tree = ("neg", tree) if found[1] else tree
    return Numeral(found[1] + found[2].lstrip("0"), number, tree)


def _time_or_date(plain: str) -> Value | None:
    if time := quantity.clock_time(plain):
        return time
    if found := _DATE.fullmatch(plain):
        month = (found["m1"] or found["m2"]).lower()[:3]
        return WordAnswer(
            " ".join(filter(None, (month, str(int(found["d1"] or found["d2"])), found["year"])))
        )
    return None


def _option(plain: str) -> Value | None:
    found = _OPTION.fullmatch(plain)
    if found is None:
        return None
    letter, rest = found[1] or found[3] or found[4], found[2] or found[5]
    if rest is None:
        return Quantity(("name", letter))
    return OptionAnswer(letter, _answer(rest)) if rest[0] not in "+-*/^=<>" else None


def _matrix(text: str) -> Value | None:
    text = (
        re.sub(r"\\(?:left|right)\s*[(\[|)\]]?", "", text.strip())
        if "array" in text
        else text.strip()
    )
    found = re.fullmatch(
        r"\(?\s*\\begin\{([pbB]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*\)?",
        text,
        re.DOTALL,
    )
    if found is None or "\\begin" in found[2]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2]) if row.strip()]
    cells = [tuple(_formula(tokens(cell)) for cell in row.split("&")) for row in rows]
    if (
        not cells
        or len(cells) * len(cells[0]) > _MOST_ITEMS
        or len({len(row) for row in cells}) > 1
    ):
        raise UnreadableError("the matrix is not understood")
    return MatrixAnswer(tuple(cells))


def _formula(parts: Sequence[Token]) -> Tree:
    return expression(tuple(parts))


def _qualified(parts: list[Token]) -> list[Token]:
    """Remove words that follow and change nothing, such as "for all x", and labels before."""
    depth = 0
    for place, part in enumerate(parts):
        depth += _depth(part)
        if depth or all(
            each.kind in ("words", "letters") and len(each.text) > 1 for each in parts[:place]
        ):
            continue
        rest = _text_of(parts[place:])
        if part.kind in ("words", "letters") and (_TAIL.match(rest) or part.text == r"\forall"):
            if not _NEGATION.search(rest):
                return _qualified_front(parts[:place])
        elif part.kind in ("words", "letters") and part.text.strip() == "for":
            if not re.search(r"\b(?:and|or)\b", rest) and not _NEGATION.search(rest):
                return _qualified_front(parts[:place])
        elif part.text == r"\forall":
            return _qualified_front(parts[:place])
        elif part.text in (",", "(") and _is_domain(parts[place + 1 :]):
            return _qualified_front(parts[:place])
    return _qualified_front(parts)


def _is_domain(parts: list[Token]) -> bool:
    """Tell whether this says what kind of number a name is: n in Z."""
    texts = [part.text for part in parts]
    return (
        len(texts) >= 6
        and texts[1:3] == [r"\in", r"\mathbb"]
        and len(texts) <= 8
        and texts[4] in "ZN"
    )


def _qualified_front(parts: list[Token]) -> list[Token]:
    while parts and (
        (parts[0].kind == "words" and _LEAD.match(parts[0].text.strip()))
        or parts[0].text in (r"\approx", ":", "=", r"\therefore")
    ):
        parts = parts[1:]
    while parts and (parts[-1].text in (",", ".", ";") or not parts[-1].text.strip()):
        parts = parts[:-1]
    return parts


def _text_of(parts: Sequence[Token]) -> str:
    return "".join((" " if part.spaced else "") + part.text for part in parts).strip()


def _depth(part: Token) -> int:
    if part.kind in ("words", "letters", "number"):
        return 0
    return (part.text in OPENING) - (part.text in CLOSING)


def _unreversed(parts: list[Token]) -> list[Token]:
    """Turn the brackets of ]0,1[ round."""
    if not any(part.text == "]" for part in parts) and not any(part.text == "[" for part in parts):
        return parts
    found, depth, opened = [], 0, 0
    for place, part in enumerate(parts):
        after = parts[place + 1].text if place + 1 < len(parts) else ""
        ends = after in ("", r"\cup", r"\cap", ",")
        if part.text == "]" and depth == 0:
            part = part._replace(text="(")
        elif part.text == "[" and depth == 1 and ends and parts[opened].text in ("[", "]", "("):
            part = part._replace(text=")")
        if depth == 0 and _depth(part) > 0:
            opened = place
        depth += _depth(part)
        found.append(part)
    return found


def _split(
    parts: Sequence[Token], separator: Callable[[Token], str | None]
) -> tuple[list[list[Token]], list[str]]:
    """Split at separators outside of brackets, and return the pieces and the separators."""
    pieces: list[list[Token]] = [[]]
    found: list[str] = []
    depth = 0
    for part in parts:
        depth += _depth(part)
        name = separator(part) if depth == 0 else None
        if name is None:
            pieces[-1].append(part)
        else:
            found.append(name)
            pieces.append([])
    if depth:
        raise UnreadableError("a bracket does not close")
    return pieces, found


def _joint(part: Token) -> str | None:
    if part.kind == "words" or part.kind == "letters" or part.kind == "symbol":
        return _JOINTS.get(part.text.strip(" ,;").lower() or part.text.strip()[:1]) or None
    return _JOINTS.get(part.text) if part.kind == "command" else None


def _list(parts: list[Token]) -> Value:
    groups, _ = _split(parts, lambda part: ";" if part.text == ";" else None)
    if len(groups) > 1 and all(groups) and any(part.text == "," for part in parts):
        return _combined(_shared_name([_list(group) for group in groups]), set())
    pieces, joints = _split(parts, _joint)
    # ", and" is one joint.
    kept = [(piece, joint) for piece, joint in zip(pieces, ["", *joints], strict=True) if piece]
    if len(kept) == 1 and len(pieces) == 1:
        return _item(kept[0][0])
    if not kept or not pieces[0] or not pieces[-1] or len(kept) > _MOST_ITEMS:
        raise UnreadableError("a list has too many items, or one that is empty")
    words = {joint for joint in joints if joint}
    if [part.kind for part in parts] == ["number", "symbol", "number"] and not any(
        part.spaced for part in parts[1:]
    ):
        first, second = _formula(parts[:1]), _formula(parts[2:])
        if parts[0].text.isdigit() and parts[2].text.isdigit():
            decimal = rational_tree(Fraction(f"{parts[0].text}.{parts[2].text}"), decimal=True)
            return Series((Quantity(first), Quantity(second)), "", decimal, len(parts[2].text))
    items = _shared_name([_item(piece) for piece, _ in kept])
    return _combined(items, words)


def _shared_name(items: list[Value]) -> list[Value]:
    """Give the name of x = 1, 2 to all items."""
    first = items[0]
    if isinstance(first, Assignments) and len(items) > 1:
        return [first, *(_named_series(first, each) or each for each in items[1:])]
    if isinstance(first, NamedAnswer) and not any(
        isinstance(each, NamedAnswer) for each in items[1:]
    ):
        return [first, *(replace(first, value=each) for each in items[1:])]
    return items


def _named_series(names: Assignments, value: Value) -> Assignments | None:
    """Give the names of (x,y)=(5,8) to the point (8,5)."""
    if not isinstance(value, Series) or len(value.items) != len(names.items):
        return None
    pairs = zip(names.items, value.items, strict=True)
    return Assignments(tuple(NamedAnswer(each.name, item) for each, item in pairs))


def _combined(items: list[Value], joints: set[str]) -> Value:
    sets = [each for each in items if isinstance(each, RealSet)]
    if len(sets) == len(items) and all(each.variable is not None for each in sets):
        if len({each.variable for each in sets}) > 1:
            return Series(tuple(items))
        form = sets[0].form
        kind = "union" if "or" in joints else "inter" if "and" in joints else "either"
        for each in sets[1:]:
            form = (kind, form, each.form)
        return RealSet(form, sets[0].variable)
    if sets and "or" in joints and all(_as_set(each) is not None for each in items):
        form = ("points",)
        for each in items:
            part = _as_set(each)
            assert part is not None
            form = ("union", form, part.form)
        return RealSet(form, sets[0].variable)
    named = [each for each in items if isinstance(each, NamedAnswer)]
    if len(named) == len(items):
        names = [each.name for each in named]
        if len(set(names)) == len(names):
            return Assignments(tuple(named))
        if len(set(names)) == 1:
            return NamedAnswer(
                names[0], Series(tuple(each.value for each in named)), named[0].parameters
            )
    flat: list[Value] = []
    for each in items:
        several = isinstance(each, Series) and not each.brackets
        flat.extend(each.items if several and isinstance(each, Series) else [each])
    return Series(tuple(flat))


def _as_set(value: Value) -> RealSet | None:
    if isinstance(value, RealSet):
        return value
    if (
        isinstance(value, NamedAnswer)
        and isinstance(value.value, Quantity)
        and not value.parameters
    ):
        return RealSet(("points", value.value.tree), value.name)
    return None


def _item(parts: list[Token]) -> Value:
    pieces, signs = _split(
        parts, lambda part: _SIGNS.get(part.text) if part.kind != "words" else None
    )
    if not signs:
        return _set_or_single(pieces[0])
    if not all(pieces):
        raise UnreadableError(f"nothing stands beside {signs[0]!r}")
    if signs[-1] == "in":
        return _membership(pieces, signs)
    if all(sign == "=" for sign in signs):
        return _equation(_without_rounding(parts, pieces))
    if "in" in signs:
        raise UnreadableError("the relation is not understood")
    return _inequality([_formula(piece) for piece in pieces], signs)


def _without_rounding(parts: list[Token], pieces: list[list[Token]]) -> list[list[Token]]:
    r"""Leave out what x = \frac13 \approx 0.33 says last."""
    kinds = [part.text for part in parts if part.text in _SIGNS and part.kind != "words"]
    first = next((n for n, kind in enumerate(kinds) if kind == r"\approx" and n), len(kinds))
    return pieces[: first + 1]


def _membership(pieces: list[list[Token]], signs: list[str]) -> Value:
    if len(signs) > 1:
        raise UnreadableError("the relation is not understood")
    value = _set_or_single(pieces[1])
    name = _formula(pieces[0])
    if (found := _interval_of(value)) is not None:
        return RealSet(found.form, name)
    return NamedAnswer(name, Series(value.items) if isinstance(value, Series) else value)


def _interval_of(value: Value) -> RealSet | None:
    """Return a pair in brackets as the interval that it may be."""
    if isinstance(value, RealSet):
        return value
    if isinstance(value, Series) and value.brackets in ("()", "[]") and len(value.items) == 2:
        low, high = value.items
        if isinstance(low, Quantity) and isinstance(high, Quantity):
            closed = value.brackets == "[]"
            return RealSet(("interval", low.tree, closed, high.tree, closed))
    return None


interval_of = _interval_of


def _equation(pieces: list[list[Token]]) -> Value:
    last = pieces[-1]
    name, parameters = _name(pieces[0])
    if name is not None:
        if len(pieces) > 2:
            # f = g(x) = 2x defines the same twice; 7 = 11 contradicts itself, and the last counts.
            for piece in pieces[1:-1]:
                _formula(piece)
        if name[0] == "names":
            return _named_tuple(name, last)
        return NamedAnswer(name, _set_or_single(last), parameters)
    trees = [_formula(piece) for piece in pieces]
    return RelationAnswer(tuple(trees), ("=",) * (len(trees) - 1))


def _named_tuple(name: Tree, parts: list[Token]) -> Value:
    value = _set_or_single(parts)
    if not isinstance(value, Series) or len(value.items) != len(name) - 1:
        raise UnreadableError("names and values differ in number")
    return Assignments(
        tuple(NamedAnswer(each, item) for each, item in zip(name[1:], value.items, strict=True))
    )


_HEADS = frozenset(["^", "_", "{", "}", "-", "'", r"\circ", r"\phi", r"\psi", r"\varphi", r"\pi"])


def _name(parts: list[Token]) -> tuple[Tree | None, tuple[str, ...]]:
    """Return what is named, and the parameters of a function; None if it is a formula."""
    if len(parts) == 1 and parts[0].kind == "words":
        return ("name", _plain(parts[0].text).casefold()), ()
    texts = [part.text for part in parts]
    if texts[0] in (r"\angle", r"\measuredangle", r"\triangle") or texts[:2] == ["m", r"\angle"]:
        return ("name", "".join(texts)), ()
    if len(texts) >= 4 and "(" in texts and texts[-1] == ")":
        start = texts.index("(")
        head, inner = parts[:start], texts[start + 1 : -1]
        if (
            head
            and all(part.kind in ("letters", "number") or part.text in _HEADS for part in head)
            and all(
                (text.isalpha() and len(text) == 1) if place % 2 == 0 else text == ","
                for place, text in enumerate(inner)
            )
        ):
            return ("name", "".join(text for text in texts[:start] if text not in "{}")), tuple(
                inner[::2]
            )
    if len(texts) >= 4 and texts[1] == "(" and texts[-1] == ")" and parts[0].kind == "letters":
        return ("apply", texts[0], _formula(parts[2:-1])), ()
    if texts[0] == "(" and texts[-1] == ")":
        pieces, _ = _split(parts[1:-1], lambda part: "," if part.text == "," else None)
        if len(pieces) > 1:
            return ("names", *(_formula(piece) for piece in pieces)), ()
    if any(part.text == ":" for part in parts):
        pieces, _ = _split(parts, lambda part: ":" if part.text == ":" else None)
        return ("ratio", *(_formula(piece) for piece in pieces)), ()
    tree = _formula(parts)
    return (tree if _is_name(tree) else None), ()


def _is_name(tree: Tree) -> bool:
    r"""Tell whether a formula names a value: x, |AB|, \frac{NO}{BO}; 2x is no name."""
    match tree[0]:
        case "name" | "apply":
            return True
        case "mul" | "div":
            return all(_is_name(each) and (each[0] != "name" or each[1].isupper() or "_" in each[1]
                       or tree[0] == "div" and each[1].isupper()) for each in tree[1:])  # fmt: skip
        case "call":
            return tree[1] in ("abs", "sin", "cos", "tan") and _is_name(tree[2])
    return False


_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def _inequality(terms: list[Tree], signs: list[str]) -> Value:
    unknown = [place for place, term in enumerate(terms) if names_of(term)]
    if len(unknown) != 1 or any(sign == "=" for sign in signs):
        if all(sign in (">", ">=", "=") for sign in signs) and ">" in "".join(signs):
            terms, signs = terms[::-1], [_FLIP[sign] for sign in signs[::-1]]
        return RelationAnswer(tuple(terms), tuple(signs))
    place = unknown[0]
    subject, form = terms[place], _LINE
    for left, sign, right in zip(terms, signs, terms[1:], strict=False):
        if left != subject and right != subject:
            continue
        bound = right if left is subject else left
        sign = sign if left is subject else _FLIP[sign]
        form = ("inter", form, _bounded(sign, bound))
    if len(terms) > 3 or len({*signs} & {"<", "<="}) and len({*signs} & {">", ">="}):
        raise UnreadableError("the chain of inequalities is not understood")
    return RealSet(form, subject)


def _bounded(sign: str, bound: Tree) -> Tree:
    low = ("neg", INFINITY)
    match sign:
        case "<" | "<=":
            return ("interval", low, False, bound, sign == "<=")
        case ">" | ">=":
            return ("interval", bound, sign == ">=", INFINITY, False)
    return ("minus", _LINE, ("points", bound))


def _set_or_single(parts: list[Token]) -> Value:
    pieces, signs = _split(parts, lambda part: _SET_SIGNS.get(part.text))
    if not signs:
        return _bracketed(parts) or _single(parts)
    sets = [_set(_bracketed(piece) or _single(piece)) for piece in pieces if piece]
    if len(sets) != len(pieces):
        raise UnreadableError("a set is missing")
    form = sets[0].form
    for sign, part in zip(signs, sets[1:], strict=True):
        form = (sign, form, part.form)
    return RealSet(form)


def _set(value: Value) -> RealSet:
    if (found := _interval_of(value)) is not None:
        return found
    if isinstance(value, Series) and value.brackets == "{}":
        points = [item.tree for item in value.items if isinstance(item, Quantity)]
        if len(points) == len(value.items):
            return RealSet(("points", *points))
    if isinstance(value, WordAnswer | Quantity):
        raise UnreadableError("a set of real numbers was expected")
    raise UnreadableError("the set is not understood")


def _bracketed(parts: list[Token]) -> Value | None:
    """Read what is in brackets as a whole; None if no brackets hold it all."""
    texts = [part.text for part in parts]
    if texts[0] == r"\mathbb" and len(texts) in (2, 4):
        letter = texts[1] if len(texts) == 2 else texts[2]
        if letter in _SETS:
            return _SETS[letter]
    if len(texts) == 1 and texts[0] in (r"\emptyset", r"\varnothing"):
        return RealSet(EMPTY)
    opening, closing = texts[0], texts[-1]
    if len(parts) < 2 or _depth(parts[0]) != 1 or _depth(parts[-1]) != -1 or not _is_whole(parts):
        return None
    kind = opening.lstrip("\\") + closing.lstrip("\\")
    kind = {"langlerangle": "()", "lbracerbrace": "{}", "lfloorrfloor": "", "lceilrceil": ""}.get(
        kind, kind
    )
    if kind not in ("()", "[]", "(]", "[)", "{}"):
        return None
    inner = parts[1:-1]
    is_set = kind == "{}" and opening != "{"
    if not inner:
        return RealSet(EMPTY) if is_set else None
    if is_set and (built := _built(inner)) is not None:
        return built
    pieces, joints = _split(
        inner, lambda part: "," if part.text in (",", ";") and part.kind != "words" else None
    )
    if not joints:
        if kind == "()" or (kind == "{}" and not is_set):
            # A bracket around one number is part of the formula.
            return _list(inner) if kind == "{}" or not _is_formula(inner) else None
        if kind == "[]":
            return None
    if not all(pieces) or len(pieces) > _MOST_ITEMS:
        raise UnreadableError("an item of a list is missing")
    if kind in ("(]", "[)"):
        if len(pieces) != 2:
            raise UnreadableError("an interval has two ends")
        low, high = map(_formula, pieces)
        return RealSet(("interval", low, kind == "[)", high, kind == "(]"))
    if kind == "{}" and not is_set:
        return _list(inner)  # braces that LaTeX does not show
    return _expanded(tuple(_item(piece) for piece in pieces), kind)


def _expanded(items: tuple[Value, ...], kind: str) -> Value:
    """Return a set, or points, in which each plus-minus stands for two values."""
    if not any(isinstance(each, Series) and not each.brackets for each in items):
        return Series(items, kind)
    if kind == "{}":
        flat = [
            part for each in items for part in (each.items if isinstance(each, Series) else (each,))
        ]
        return Series(tuple(flat), kind)
    both = (
        tuple(
            each.items[n] if isinstance(each, Series) and not each.brackets else each
            for each in items
        )
        for n in (0, 1)
    )
    return Series(tuple(Series(each, kind) for each in both))


def _is_formula(parts: list[Token]) -> bool:
    try:
        _formula(parts)
    except UnreadableError:
        return False
    return True


def _is_whole(parts: list[Token]) -> bool:
    depth = 0
    for part in parts[:-1]:
        depth += _depth(part)
        if depth == 0:
            return False
    return True


def _built(inner: list[Token]) -> Value | None:
    """Read the condition of {x | x > 2}; None if there is no bar."""
    for place, part in enumerate(inner):
        if part.text in ("|", ":", r"\mid", r"\vert") and place:
            head = [each.text for each in inner[:place]]
            if len(head) == 1 or (len(head) > 1 and head[1] == r"\in"):
                value = _list(inner[place + 1 :])
                if isinstance(value, RealSet):
                    return RealSet(value.form)
                raise UnreadableError("the condition of the set is not understood")
    return None


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
_NO_NOUN = re.compile(
    r"(?i)\b(?:percent|root|power|th|st|nd|rd|squared|cubed|factorial|times|plus|minus|over|divided|more|less|least|most|fewer|or|and|not"
    r"|if|is|are|unless|except|to|than|base|mod|modulo|hundredths?|thousandths?|millionths?|billionths?"
    r"|tenths?|halves|half|thirds?|quarters?|fourths?|fifths?|remainder|r|from|between|solutions?"
    rf"|no|pas|nicht|oder|ou|und|et|{'|'.join(_MONTHS)})\b|不|没|ない|아니|아닙|或"
)


def _single(parts: list[Token]) -> Value:
    if not parts:
        raise UnreadableError("an answer is missing")
    if (words := _words(parts)) is not None:
        return words
    if (residue := _residue(parts)) is not None:
        return residue
    terms, colons = _split(parts, lambda part: ":" if part.text.strip() in (":", "to") else None)
    if colons and (
        len(terms) == 2 or all(part.text == ":" for part in parts if part.text in (":", " to "))
    ):
        if not all(terms):
            raise UnreadableError("a term of the ratio is missing")
        return RatioAnswer(tuple(_formula(term) for term in terms))
    value = _quantity(parts)
    signs = [value.tree] if has_sign(value.tree) else []
    if signs:
        return Series(
            tuple(replace(value, tree=signed(value.tree, plus)) for plus in (True, False))
        )
    return value


def _residue(parts: list[Token]) -> ResidueAnswer | None:
    r"""Read 5 \pmod 7 and 5 (mod 7); None if there is no modulus."""
    for place in range(1, len(parts)):
        word = parts[place].text.strip()
        start = place - (parts[place - 1].text == "(")
        if word in (r"\pmod", r"\mod", r"\bmod", "mod") and start:
            modulus = [part for part in parts[place + 1 :] if part.text not in ("(", ")", "{", "}")]
            return ResidueAnswer(_formula(parts[:start]), _formula(modulus))
    return None


def has_sign(tree: Tree) -> bool:
    """Tell whether there is a plus-minus in a formula."""
    return tree[0] in ("pm", "mp") or any(
        has_sign(each) for each in tree[1:] if isinstance(each, tuple)
    )


def signed(tree: Tree, plus: bool) -> Tree:  # noqa: FBT001 - which of the two signs
    """Choose the upper or the lower sign everywhere."""
    if tree[0] in ("pm", "mp"):
        inner = signed(tree[1], plus)
        return inner if (tree[0] == "pm") == plus else ("neg", inner)
    return tuple(signed(each, plus) if isinstance(each, tuple) else each for each in tree)


def _words(parts: list[Token]) -> Value | None:
    """Read words; None if they are mathematics."""
    if any(
        part.kind not in ("words", "letters") and part.text not in (".", "-", "'") for part in parts
    ):
        return None
    text = _SPACES.sub(" ", _text_of(parts)).strip(" .!")
    if known := _phrase(text) or _time_or_date(text):
        return known
    runs = re.findall(r"[^\W\d_]+", text)
    as_text = any(part.kind == "words" for part in parts)
    if not runs or not _WORDS.fullmatch(text):
        return None
    if len(runs) == 1 and len(text) == 1:
        return Quantity(("name", text)) if text not in "ei" else Quantity(("const", text))
    if not as_text and (
        all(_MATH_WORDS.fullmatch(run) for run in runs)
        or _MATH_WORDS.match(text)
        and len(_MATH_WORDS.match(text)[0]) > 1
        and len(runs) < 3
        and len(runs[-1]) == 1
    ):
        return None
    if len(runs) > 1 and runs[0].lower() in ("sin", "cos", "tan", "ln", "log") and not as_text:
        return None
    folded = text.casefold()
    if as_text or len(runs) > 1 or len(text) > 3:
        return WordAnswer(folded)
    if len(text) == 2 and text.islower() and text not in _SHORT_WORDS:
        return Quantity(_formula(parts))
    try:
        return WordAnswer(folded, _formula(parts))
    except UnreadableError:
        return WordAnswer(folded)


def _quantity(parts: list[Token]) -> Quantity:
    """Read a formula with its unit."""
    parts, money = _without_money(parts)
    place = next((n for n in range(1, len(parts)) if _starts_unit(parts, n)), len(parts))
    tree = _formula(parts[:place])
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
    if tree[0] == "deg" and unit is not None:
        return Quantity(tree[1], unit)
    return Quantity(tree, unit)


def _without_money(parts: list[Token]) -> tuple[list[Token], Unit | None]:
    for place in (0, 1, len(parts) - 1):
        if 0 <= place < len(parts) and (symbol := _SYMBOL_UNITS.get(parts[place].text)):
            if place == 1 and parts[0].text not in ("-", "+"):
                continue
            return parts[:place] + parts[place + 1 :], quantity.unit(symbol)
    return parts, None


def _starts_unit(parts: list[Token], place: int) -> bool:
    """Tell whether a unit begins here: words, or a unit's name after a number and a space."""
    part = parts[place]
    if part.kind == "words":
        return bool(part.text.strip())
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
        return word in _GLUED or (len(word) > 3 and quantity.is_known(word))
    follows = [each for each in parts[place:] if each.kind != "letters"]
    return (
        quantity.is_known(word)
        or (len(word) > 3 and not follows and not _MATH_WORDS.match(word + " "))
        or (len(word) > 3 and not follows)
    )


def _measured(tree: Tree, parts: list[Token]) -> tuple[Tree, Unit | None]:
    """Read the unit after a number, with its scale: million dollars."""
    again = next((n for n in range(1, len(parts)) if _starts_number(parts, n)), len(parts))
    text = _unit_text(parts[:again])
    degrees = tree[0] == "deg"
    while (word := text.split(" ", 1)[0]) and (times := quantity.scale(word)):
        tree, text = ("mul", tree, integer(times)), text[len(word) :].strip()
    text = re.sub(r"(?i)^(?:percentage|percent|pct)(?: points?)?$", "%", text)
    if text == "%":
        return tree, PERCENT
    if not text:
        return tree, None
    if _NO_NOUN.search(text):
        raise OtherMeaningError(f"{text!r} is no unit")
    if degrees or re.match(r"(?i)(?:degrees?|°) ?(?:celsius|fahrenheit|[CF]\b)", text):
        text = "°" + (
            "C"
            if re.search(r"(?i)c(?:elsius)?$", text)
            else "F"
            if re.search(r"(?i)f(?:ahrenheit)?$", text)
            else text
        )
    unit = quantity.unit(text)
    if unit is None:
        raise UnreadableError(f"{text!r} is no unit")
    if again == len(parts):
        return tree, unit
    rest = _quantity(parts[again:])
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
    text = _SPACES.sub(" ", "".join(pieces)).strip(" ,.~")
    text = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    return re.sub(r"\^\s*\{?\s*°\s*\}?", "°", re.sub(r"^\((.*)\)$", r"\1", text))
