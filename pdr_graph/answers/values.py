"""What an answer can be: a quantity, a word, a set of numbers, a list, an equation.

`reader.py` reads them, `equality.py` compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pdr_graph.answers.expression import INFINITY, Tree, integer, names_of, put, rational_tree
from pdr_graph.answers.points import IrrationalError, value_at
from pdr_graph.answers.quantity import Quantity


@dataclass(frozen=True, slots=True)
class ClockTime:
    """A time of day."""

    seconds: int
    """Seconds since midnight; without a half of the day, as the clock shows."""
    half: str
    """"a", "p", or empty if none is stated."""
    terms: tuple[int, ...]
    """As it was written: 7:32 may also be a ratio."""


def same_time(left: ClockTime, right: ClockTime) -> bool:
    """Compare two times of day; the half of the day may be left off."""
    if bool(left.half) == bool(right.half):
        return left.seconds == right.seconds
    said, bare = (left, right) if left.half else (right, left)
    noon = 12 * 3600
    on_the_dial = bare.seconds < noon + 3600 and bare.seconds % noon == said.seconds % noon
    return said.seconds == bare.seconds or on_the_dial


@dataclass(frozen=True, slots=True)
class UnreadableAnswer:
    """An answer that is not understood."""

    reason: str
    is_other: bool = False
    """Whether it surely is no number alone: 6 or more, 9 factorial."""


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
    """("interval", low, is_closed, high, is_closed), ("points", …), or two forms under "union",
    "inter", "minus" or "either" (the intersection, or the union if that is empty)."""
    variable: Tree | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """Several answers."""

    items: tuple[Value, ...]
    brackets: str = ""
    """"()" and "[]" give an order, "{}" and none do not."""
    decimal: Tree | None = None
    """The number 1.05 of a text 1,05, if its comma is a decimal point."""
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


LINE: Tree = ("interval", ("neg", INFINITY), False, INFINITY, False)


EMPTY: Tree = ("points",)


def interval_of(value: Value) -> RealSet | None:
    """Return a pair in brackets as the interval that it may be."""
    if isinstance(value, RealSet):
        return value
    if isinstance(value, Series) and value.brackets in ("()", "[]") and len(value.items) == 2:
        low, high = value.items
        if isinstance(low, Quantity) and isinstance(high, Quantity):
            closed = value.brackets == "[]"
            return RealSet(("interval", low.tree, closed, high.tree, closed))
    return None


def points_of(value: Value) -> RealSet | None:
    """Return a set of numbers as what it is, a pair in brackets as an interval."""
    if isinstance(value, Series) and value.brackets in ("{}", ""):
        points = [each.tree for each in value.items if isinstance(each, Quantity)]
        return (
            RealSet(("points", *points))
            if len(points) == len(value.items) and value.brackets
            else None
        )
    return interval_of(value)


def ends_of(form: Tree) -> list[Tree]:
    """Return the ends of intervals, and the points."""
    if form[0] == "interval":
        return [form[1], form[3]]
    if form[0] == "points":
        return list(form[1:])
    return [end for part in form[1:] for end in ends_of(part)]


def members(form: Tree, ends: list[Tree], same: Callable[[Tree, Tree], bool]) -> list[bool]:
    """Return whether each gap and each end belongs to a set, in the order gap, end, gap, … gap."""

    def place(tree: Tree) -> int:
        return next((n for n, end in enumerate(ends) if same(tree, end)), 0)

    count = 2 * len(ends) + 1
    infinite = [end in (INFINITY, ("neg", INFINITY)) for end in ends]
    match form[0]:
        case "interval":
            low, high = 2 * place(form[1]) + 1, 2 * place(form[3]) + 1
            first, last = low + (not form[2]), high - (not form[4])
            found = [first <= n <= last for n in range(count)]
        case "points":
            places = {2 * place(each) + 1 for each in form[1:]}
            found = [n in places for n in range(count)]
        case kind:
            left, right = (members(part, ends, same) for part in form[1:])
            both = [a and b for a, b in zip(left, right, strict=True)]
            if kind == "union" or (kind == "either" and not any(both)):
                # x<1, x>2 cannot be both.
                found = [a or b for a, b in zip(left, right, strict=True)]
            elif kind == "minus":
                found = [a and not b for a, b in zip(left, right, strict=True)]
            else:
                found = both
    return [member and not (n % 2 and infinite[n // 2]) for n, member in enumerate(found)]


def solved(given: RealSet) -> RealSet:
    """Solve 2x+1 > 5 and |x| < 3 for x, where that takes no more than a division."""
    tree = given.variable
    if tree is None or tree[0] in ("name", "apply"):
        return given
    names = names_of(tree)
    if len(names) != 1:
        return given
    (name,) = names
    if tree[0] == "call" and tree[1] == "abs":
        return solved(RealSet(_mirrored(given.form), tree[2]))
    try:
        at = [value_at(put(tree, name, each), 0) for each in (0, 1, 2, 5)]
    except (IrrationalError, ZeroDivisionError, TypeError):
        return given
    slope = at[1] - at[0]
    if slope == 0 or at[2] - at[1] != slope or at[3] - at[2] != 3 * slope:
        return given

    def moved(end: Tree) -> Tree:
        if end in (INFINITY, ("neg", INFINITY)):
            return end if slope > 0 else ("neg", end) if end == INFINITY else INFINITY
        return ("mul", ("add", end, rational_tree(-at[0])), rational_tree(1 / slope))

    return RealSet(_moved(given.form, moved, turned=slope < 0), ("name", name))


def _moved(form: Tree, move: Callable[[Tree], Tree], *, turned: bool) -> Tree:
    if form[0] == "points":
        return ("points", *map(move, form[1:]))
    if form[0] == "interval":
        low, high = (move(form[1]), form[2]), (move(form[3]), form[4])
        return ("interval", *(high + low if turned else low + high))
    return (form[0], *(_moved(part, move, turned=turned) for part in form[1:]))


def _mirrored(form: Tree) -> Tree:
    """Return the numbers whose absolute value is in a set."""
    if form[0] in ("points", "interval"):
        turned = _moved(
            form, lambda end: INFINITY if end == ("neg", INFINITY) else ("neg", end), turned=True
        )
        positive: Tree = ("interval", integer(0), True, INFINITY, False)
        negative: Tree = ("interval", ("neg", INFINITY), False, integer(0), True)
        return ("union", ("inter", form, positive), ("inter", turned, negative))
    return (form[0], *(_mirrored(part) for part in form[1:]))
