"""Decides whether two values are equal, by the rules of `docs/explanation/answers.md`.

Formulas are compared by their values at a few fixed points, which are rational and differ for every
name. Rational values are exact, and computed here; the others come from the worker, with 40 digits.
Two formulas that differ agree at such points as good as never, and a formula that is the same never
differs. So no simplification is needed, and no two answers need to be brought into one form.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation, Overflow
from fractions import Fraction
from functools import lru_cache

from pdr_graph.answers.expression import Tree, integer, names_of, rational_tree
from pdr_graph.answers.quantity import ClockTime, Unit, same_time
from pdr_graph.answers.values import (
    DEGREE,
    INFINITY,
    PERCENT,
    Assignments,
    MatrixAnswer,
    NamedAnswer,
    Numeral,
    OptionAnswer,
    Quantity,
    RatioAnswer,
    RealSet,
    RelationAnswer,
    ResidueAnswer,
    Series,
    Value,
    WordAnswer,
    interval_of,
)

# At whole numbers floors differ from ceilings, and far from 0 an absolute value from its content.
_SCALES = (1, 1, -1, 37, -41, 1009, -1013, Fraction(1, 53), 1, -1)
NUM_POINTS = len(_SCALES) + 3
"""Of each name."""
_FEWEST_POINTS = 2
# In bits: a larger rational is left to the worker.
_LARGEST = 8192
_DIGITS = Context(prec=45, Emax=MAX_EMAX, Emin=MIN_EMIN)
_EXACT = Decimal("1e-37")
# As in `exact.py`: one part in a million, and half of the sixth decimal of a rational number.
_DECIMAL = Decimal("1.001e-6")
_RADIAN = Unit(frozenset([("radian", 1)]))
_PI: Tree = ("const", "pi")

Approximation = tuple[Decimal, Decimal, bool]
"""Real and imaginary part, and whether all on the way was real: the roots of negative numbers are
not, though their product may be."""
Number = Fraction | Approximation | float
"""A float is an infinity."""


class UndecidedError(ValueError):
    """The comparison needs more than values at points."""


class _IrrationalError(ValueError):
    """A value is not rational, or too large to be computed here."""


@lru_cache(maxsize=4096)
def point(name: str, index: int) -> Fraction:
    """Return a value of a name: near to 0 and far from it, of both signs, and three whole numbers."""
    seed = zlib.crc32(f"{name}:{index}".encode())
    if index >= len(_SCALES):
        # One of them even, one odd, one negative.
        whole = 2 * (seed % 89) + 4 + index % 2
        return Fraction(-whole if index == NUM_POINTS - 1 else whole)
    return Fraction(seed % 9_973 + 2_003, 4_999 + (seed >> 16) % 97) * _SCALES[index]


@lru_cache(maxsize=8192)
def _rational(tree: Tree, index: int) -> Fraction | None:
    """Return the exact value at a point; None where there is none.

    Raises:
        _IrrationalError: The value is not rational, or too large.
    """
    try:
        return _value(tree, index)
    except ZeroDivisionError:
        return None


def _value(tree: Tree, index: int) -> Fraction:
    kind = tree[0]
    if kind in ("num", "dec"):
        return Fraction(tree[1], tree[2])
    if kind == "name":
        return point(tree[1], index)
    if kind == "apply":
        return _applied(tree[1], [_value(each, index) for each in tree[2:]])
    if kind in ("const", "deg") or (kind == "call" and tree[1] not in _RATIONAL_CALLS):
        raise _IrrationalError
    values = [_value(each, index) for each in tree[1:] if isinstance(each, tuple)]
    result = _RATIONAL_CALLS[tree[1]](*values) if kind == "call" else _RATIONAL[kind](*values)
    if max(result.numerator.bit_length(), result.denominator.bit_length()) > _LARGEST:
        raise _IrrationalError
    return result


def _applied(name: str, arguments: list[Fraction]) -> Fraction:
    """Return a value of a function that has no formula: that of a cubic of its own."""
    total = point(name, 0)
    for place, each in enumerate(arguments, 1):
        total += point(name, place) * each + each**2 + place * each**3
    return total


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        return (
            _root(base**exponent.numerator, Fraction(exponent.denominator))
            if abs(exponent.numerator) < 64
            else _never()
        )
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * size > _LARGEST and abs(base) != 1 and base != 0:
        raise _IrrationalError
    if base == 0 and exponent < 0:
        raise ZeroDivisionError
    if base in (0, 1, -1) and abs(exponent) > 10**6:
        return Fraction(1) if base == 1 or (base == -1 and exponent % 2 == 0) else base
    return base**exponent.numerator


def _never() -> Fraction:
    raise _IrrationalError


def _root(value: Fraction, index: Fraction) -> Fraction:
    """Return a root that is rational; of a negative number the real one."""
    if index.denominator != 1 or not 1 <= index <= 64:
        raise _IrrationalError
    degree = index.numerator
    if value < 0:
        if degree % 2 == 0:
            raise _IrrationalError
        return -_root(-value, index)
    parts = []
    for part in (value.numerator, value.denominator):
        near = round(part ** (1 / degree)) if part.bit_length() < 1000 else -1
        if degree == 2:
            near = math.isqrt(part)
        found = next(
            (each for each in (near - 1, near, near + 1) if each >= 0 and each**degree == part),
            None,
        )
        if found is None:
            raise _IrrationalError
        parts.append(found)
    return Fraction(*parts)


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= 900:
        raise _IrrationalError
    return Fraction(math.factorial(int(value)))


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    if above.denominator != 1 or below.denominator != 1 or not 0 <= above <= 900 or below < 0:
        raise _IrrationalError
    return Fraction(math.comb(int(above), int(below)))


def _integers(function: Callable[..., int], *values: Fraction) -> Fraction:
    if any(each.denominator != 1 for each in values):
        raise _IrrationalError
    return Fraction(function(*map(int, values)))


_RATIONAL: dict[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "percent": lambda a: a / 100,
    "pow": _power,
    "root": _root,
}
_RATIONAL_CALLS: dict[str, Callable[..., Fraction]] = {
    "abs": abs,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "factorial": _factorial,
    "binom": _binomial,
    "max": max,
    "min": min,
    "gcd": lambda *each: _integers(math.gcd, *each),
    "lcm": lambda *each: _integers(math.lcm, *each),
    "sgn": lambda a: Fraction((a > 0) - (a < 0)),
}


def rational_value(tree: Tree) -> Fraction | None:
    """Return the value of a formula without names; None if it is not rational, or too large."""
    try:
        return _rational(tree, 0) if not names_of(tree) else None
    except (_IrrationalError, TypeError):
        return None


def has_decimal(tree: Tree) -> bool:
    """Tell whether a number is written as a decimal, so that it may be rounded."""
    return tree[0] == "dec" or any(
        has_decimal(each) for each in tree[1:] if isinstance(each, tuple)
    )


@dataclass(slots=True)
class Comparison:
    """Compares two values, with the values of formulas that are known.

    A formula whose values are not known counts as different, and is added to `missing`. Who asks
    evaluates these and compares again.
    """

    known: dict[Tree, list[Number | None] | None]
    """Values at the points, each None where there is none; None if there is no value anywhere."""
    missing: list[Tree] = field(default_factory=list)

    def equal(self, gold: Value, answer: Value) -> bool:
        """Compare an answer with the gold answer.

        Raises:
            UndecidedError: Values at points do not decide it.
        """
        for kinds, compare in _RULES:
            if isinstance(gold, kinds[0]) and isinstance(answer, kinds[1]):
                return compare(self, gold, answer)
        return False

    # Numbers and formulas.

    def values(self, tree: Tree) -> list[Number | None] | None:
        """Return the values of a formula at the points; None if they are not known yet."""
        if tree in (INFINITY, ("neg", INFINITY)):
            return [math.inf if tree == INFINITY else -math.inf]
        count = NUM_POINTS if names_of(tree) else 1
        try:
            return [_rational(tree, index) for index in range(count)]
        except (_IrrationalError, TypeError, OverflowError):
            pass
        if tree not in self.known:
            self.missing.append(tree)
            return None
        found = self.known[tree]
        if found is None:
            raise UndecidedError("a formula has no value that can be computed")
        return found

    def same(self, left: Tree, right: Tree) -> bool:
        """Tell whether two formulas are equal."""
        if left == right:
            return True
        if has_log(left) or has_log(right):
            # A logarithm without a base is the natural or the decimal one.
            return any(
                self._same(with_base(left, base), with_base(right, base))
                for base in (None, integer(10))
            )
        return self._same(left, right)

    def _same(self, left: Tree, right: Tree) -> bool:
        pairs = self._pairs(left, right)
        decimal = has_decimal(left) or has_decimal(right)
        return pairs is not None and all(close(a, b, decimal=decimal) for a, b in pairs)

    def _pairs(self, left: Tree, right: Tree) -> list[tuple[Number, Number]] | None:
        """Return the values of both where both have one; None if they are not known yet."""
        lefts, rights = self.values(left), self.values(right)
        if lefts is None or rights is None:
            return None
        count = max(len(lefts), len(rights))
        lefts, rights = (each * count if len(each) < count else each for each in (lefts, rights))
        both = [
            (a, b) for a, b in zip(lefts, rights, strict=True) if a is not None and b is not None
        ]
        # Roots and logarithms are compared where both are real, if they are anywhere.
        real = [(a, b) for a, b in both if is_real(a) and is_real(b)]
        alike = (
            real
            if len(real) >= _FEWEST_POINTS
            else [(a, b) for a, b in both if is_real(a) == is_real(b)]
        )
        if len(alike) >= min(count, _FEWEST_POINTS):
            return alike
        if both:
            return both  # a real number is no other
        raise UndecidedError("the formulas have no values at the same points")

    def proportional(self, left: Tree, right: Tree, *, positive: bool = False) -> bool:
        """Tell whether two formulas differ by a constant factor only."""
        pairs = self._pairs(left, right)
        if pairs is None:
            return False
        quotients = []
        for a, b in pairs:
            if is_zero(a) or is_zero(b):
                if is_zero(a) and is_zero(b):
                    continue
                return False
            quotients.append(divided(a, b))
        decimal = has_decimal(left) or has_decimal(right)
        if len(quotients) < _FEWEST_POINTS and len(pairs) > 1:
            raise UndecidedError("the equations hold at all points")
        first = quotients[0]
        if positive and not is_positive(first):
            return False
        return all(close(first, each, decimal=decimal) for each in quotients[1:])

    def less(self, left: Tree, right: Tree) -> bool:
        """Tell whether a number is smaller than another."""
        lefts, rights = self.values(left), self.values(right)
        if lefts is None or rights is None:
            return False
        a, b = lefts[0], rights[0]
        if (
            a is None
            or b is None
            or len(lefts) + len(rights) > 2
            or not (is_real(a) and is_real(b))
        ):
            raise UndecidedError("the ends of an interval are no real numbers")
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a < b
        if isinstance(a, float) or isinstance(b, float):
            return as_float(a) < as_float(b)
        return as_decimal(a)[0] < as_decimal(b)[0]

    # Kinds of answers.

    def quantities(self, gold: Quantity, answer: Quantity) -> bool:
        """Compare formulas with units."""
        mine, other = gold.unit, answer.unit
        if mine == other:
            return self.same(gold.tree, answer.tree)
        if mine is not None and other is not None:
            return self._converted(gold, answer)
        if PERCENT in (mine, other):
            return self._percent(gold, answer)
        if DEGREE in (mine, other):
            return self._degrees(gold, answer)
        return self.same(gold.tree, answer.tree)

    def _converted(self, gold: Quantity, answer: Quantity) -> bool:
        mine, other = gold.unit, answer.unit
        assert mine is not None
        assert other is not None
        if {mine, other} == {DEGREE, _RADIAN}:
            return self.same(
                *(
                    ("deg", each.tree) if each.unit == DEGREE else each.tree
                    for each in (gold, answer)
                )
            )
        if mine.dimensions != other.dimensions:
            return False
        return self.same(("mul", gold.tree, rational_tree(mine.size / other.size)), answer.tree)

    def _percent(self, gold: Quantity, answer: Quantity) -> bool:
        """Compare 28% with 28 and with 0.28; a share below 1 is not 0.5%."""
        marked, bare = (gold, answer) if gold.unit == PERCENT else (answer, gold)
        if self.same(("percent", marked.tree), bare.tree):
            return True
        value = rational_value(bare.tree)
        return self.same(marked.tree, bare.tree) and (
            value is None or abs(value) >= 1 or value == 0
        )

    def _degrees(self, gold: Quantity, answer: Quantity) -> bool:
        marked, bare = (gold, answer) if gold.unit == DEGREE else (answer, gold)
        if has_pi(bare.tree):
            return self.same(("deg", marked.tree), bare.tree)
        return self.same(marked.tree, bare.tree)

    def numerals(self, gold: Numeral, answer: Numeral) -> bool:
        """Compare numerals of one base digit by digit."""
        return gold.base == answer.base and gold.digits == answer.digits

    def digits(self, gold: Numeral, answer: Quantity) -> bool:
        """Compare a numeral with digits whose base was left off."""
        if gold.base == 10:
            return self.quantities(Quantity(gold.tree), answer)
        value = rational_value(answer.tree)
        return answer.unit is None and value is not None and gold.digits == str(value)

    def with_base_ten(self, gold: Quantity, answer: Numeral) -> bool:
        """Compare a number, whose base is ten, with a numeral."""
        return answer.base == 10 and self.quantities(gold, Quantity(answer.tree))

    def ratios(self, gold: RatioAnswer, answer: RatioAnswer) -> bool:
        """Compare the quotients of the terms."""
        if len(gold.terms) != len(answer.terms):
            return False
        first, other = gold.terms[0], answer.terms[0]
        return all(
            self.same(("mul", mine, other), ("mul", each, first))
            for mine, each in zip(gold.terms[1:], answer.terms[1:], strict=True)
        )

    def ratio_value(self, gold: RatioAnswer, answer: Quantity) -> bool:
        """Compare 3:4 with 3/4."""
        return (
            len(gold.terms) == 2
            and answer.unit is None
            and self.same(("div", *gold.terms), answer.tree)
        )

    def times(self, gold: ClockTime, answer: ClockTime) -> bool:
        """Compare times of day."""
        return same_time(gold, answer)

    def time_as_ratio(self, gold: ClockTime, answer: Value) -> bool:
        """Compare 7:32 with a ratio."""
        return not gold.half and self.equal(RatioAnswer(tuple(map(integer, gold.terms))), answer)

    def residues(self, gold: ResidueAnswer, answer: ResidueAnswer) -> bool:
        """Compare 5 mod 7 with 12 mod 7."""
        if not self.same(gold.modulus, answer.modulus):
            return False
        if self.same(gold.tree, answer.tree):
            return True
        gap = rational_value(("div", ("add", gold.tree, ("neg", answer.tree)), gold.modulus))
        return gap is not None and gap.denominator == 1

    def residue_added(self, gold: Quantity, answer: ResidueAnswer) -> bool:
        """Compare 5 with 5 mod 7."""
        return self.quantities(gold, Quantity(answer.tree))

    def words(self, gold: WordAnswer, answer: WordAnswer) -> bool:
        """Compare words as text."""
        return gold.text == answer.text

    def word_as_product(self, gold: WordAnswer, answer: Value) -> bool:
        """Compare abc with a product of letters that is written as one."""
        return gold.tree is not None and self.equal(Quantity(gold.tree), answer)

    def options(self, gold: OptionAnswer, answer: OptionAnswer) -> bool:
        """Compare the letters, and the texts."""
        return gold.letter == answer.letter and self.equal(gold.value, answer.value)

    def option_text(self, gold: OptionAnswer, answer: Value) -> bool:
        """Compare an option with its letter or its text alone."""
        if (
            isinstance(answer, Quantity)
            and answer.tree[0] == "name"
            and answer.tree[1] in "ABCDEFGHIJ"
        ):
            return answer.tree[1] == gold.letter
        return not isinstance(answer, OptionAnswer) and self.equal(gold.value, answer)

    def sets(self, gold: RealSet, answer: RealSet) -> bool:
        """Compare sets of numbers, and their variables where both have one."""
        gold, answer = solved(gold), solved(answer)
        if gold.variable and answer.variable and gold.variable != answer.variable:
            if gold.variable[0] == answer.variable[0] == "name":
                return False
            raise UndecidedError("the inequalities are not solved")
        if (not answer.variable or not gold.variable) and any(
            each.variable and each.variable[0] in ("pow", "mul", "div", "add", "root")
            for each in (gold, answer)
        ):
            raise UndecidedError("the inequality is not solved")
        ends = self._sorted([*_ends(gold.form), *_ends(answer.form)])
        return _members(self, gold.form, ends) == _members(self, answer.form, ends)

    def as_sets(self, gold: Value, answer: Value) -> bool:
        """Compare a set of numbers with an interval or points."""
        for each in (gold, answer):
            if isinstance(each, Series) and each.brackets != "{}" and len(each.items) == 2:
                low, high = each.items
                if not isinstance(low, Quantity) or not isinstance(high, Quantity):
                    return False
                if not self.less(low.tree, high.tree):
                    return False  # (2,1) is a point, and no interval
        first, second = _points_of(gold), _points_of(answer)
        return first is not None and second is not None and self.sets(first, second)

    def _sorted(self, ends: list[Tree]) -> list[Tree]:
        found: list[Tree] = []
        for end in ends:
            if not any(self.same(end, each) for each in found):
                place = next(
                    (n for n, each in enumerate(found) if self.less(end, each)), len(found)
                )
                found.insert(place, end)
        return found

    def series(self, gold: Series, answer: Series) -> bool:
        """Compare lists, points and sets."""
        kinds = {gold.brackets, answer.brackets}
        if "{}" in kinds:
            return kinds <= {"{}", ""} and self._as_set(gold.items, answer.items)
        if kinds != {""}:
            if kinds != {gold.brackets} and kinds != {"", "()"} and len(gold.items) < 3:
                return False  # [1,2] may be an interval
            return self._in_order(gold.items, answer.items)
        if all(isinstance(each, Series | Assignments) for each in (*gold.items, *answer.items)):
            return self._as_set(gold.items, answer.items)
        return self._in_any_order(gold.items, answer.items)

    def _in_order(self, golds: Sequence[Value], answers: Sequence[Value]) -> bool:
        return len(golds) == len(answers) and all(map(self._items, golds, answers))

    def _in_any_order(self, golds: Sequence[Value], answers: Sequence[Value]) -> bool:
        if len(golds) != len(answers):
            return False
        left = list(answers)
        for gold in golds:
            place = next((n for n, each in enumerate(left) if self._items(gold, each)), None)
            if place is None:
                return False
            del left[place]
        return True

    def _as_set(self, golds: Sequence[Value], answers: Sequence[Value]) -> bool:
        return all(any(self._items(gold, each) for each in answers) for gold in golds) and all(
            any(self._items(gold, each) for gold in golds) for each in answers
        )

    def _items(self, gold: Value, answer: Value) -> bool:
        """Compare items of lists, where {2} is not 2."""
        kinds = [isinstance(each, Series | RealSet | Assignments) for each in (gold, answer)]
        return kinds[0] == kinds[1] and self.equal(gold, answer)

    def comma(self, gold: Quantity, answer: Series) -> bool:
        """Compare 1.5 with 1,5: the gold answer shows that there is a point."""
        return self.one_of_series(answer, gold, by_gold_point=True)

    def one_of_series(self, gold: Series, answer: Value, *, by_gold_point: bool = False) -> bool:
        """Compare {5} with 5, and 1,25 with 1.25."""
        if len(gold.items) == 1:
            return self.equal(gold.items[0], answer)
        return (
            gold.decimal is not None
            and (by_gold_point or gold.num_places > 1 or abs(gold.decimal[1]) < gold.decimal[2])
            and isinstance(answer, Quantity)
            and has_decimal(answer.tree)
            and self.same(gold.decimal, answer.tree)
        )

    def assignments(self, gold: Assignments, answer: Assignments) -> bool:
        """Compare values by name."""
        values = {each.name: each.value for each in answer.items}
        return len(gold.items) == len(answer.items) and all(
            each.name in values and self.equal(each.value, values[each.name]) for each in gold.items
        )

    def assigned_series(self, gold: Assignments, answer: Series) -> bool:
        """Compare a=3, b=4 with values in the same order."""
        if answer.brackets not in ("", "()"):
            return False
        if any(isinstance(each, RelationAnswer) for each in answer.items):
            return False
        return self._in_order([each.value for each in gold.items], answer.items)

    def named(self, gold: NamedAnswer, answer: NamedAnswer) -> bool:
        """Compare values with names, functions and equations."""
        if gold.name == answer.name and len(gold.parameters) == len(answer.parameters):
            if gold.parameters == answer.parameters:
                return self.equal(gold.value, answer.value)
            # Names that nobody writes, so that no other is caught.
            bound = tuple(f"#{place}" for place in range(len(gold.parameters)))
            return self.equal(_renamed(gold, bound).value, _renamed(answer, bound).value)
        kinds = [each.parameters == () and each.name == ("name", "y") for each in (gold, answer)]
        if any(kinds) and (gold.parameters or answer.parameters):
            return self.equal(gold.value, answer.value)
        if gold.parameters or answer.parameters:
            return False
        first, second = _equation(gold), _equation(answer)
        if first is None or second is None:
            return False
        if not names_of(first.terms[1]) or not names_of(second.terms[1]):
            return False
        return self.relations(first, second)

    def named_value(self, gold: NamedAnswer, answer: Value) -> bool:
        """Compare x=5 with 5, and with an equation."""
        if isinstance(answer, RelationAnswer):
            equation = _equation(gold)
            if equation is None or gold.parameters:
                return False
            return self.relations(equation, answer)
        return self.equal(gold.value, answer)

    def value_named(self, gold: Value, answer: NamedAnswer) -> bool:
        """Compare 5 with x=5."""
        return (
            self.named_value(answer, gold)
            if isinstance(gold, RelationAnswer)
            else self.equal(gold, answer.value)
        )

    def relations(self, gold: RelationAnswer, answer: RelationAnswer) -> bool:
        """Compare equations, and inequalities of several variables."""
        if gold.signs != answer.signs or len(gold.terms) > 2:
            if len(gold.terms) != len(answer.terms) or gold.signs != answer.signs:
                return False
            return all(map(self.same, gold.terms, answer.terms))
        first, second = (("add", each.terms[0], ("neg", each.terms[1])) for each in (gold, answer))
        if self.proportional(first, second, positive=gold.signs[0] in ("<", "<=")):
            return True
        if gold.signs[0] != "=":
            return False
        shared = names_of(first) | names_of(second)
        if names_of(first) != names_of(second):
            return False
        for name in sorted(shared):
            if (same := self._same_roots(first, second, name)) is not None:
                return same
        if len(shared) == 1 and any(
            each.terms[0][0] == "name" and not names_of(each.terms[1]) for each in (gold, answer)
        ):
            return False  # x=2 and x^2=4
        raise UndecidedError("the equations are no multiples of one another")

    def _same_roots(self, first: Tree, second: Tree, name: str) -> bool | None:
        """Compare where equations hold that are linear in a name; None if one is not."""
        roots = []
        for tree in (first, second):
            slope, start, again = (
                ("add", _put(tree, name, above), ("neg", _put(tree, name, below)))
                for above, below in ((1, 0), (0, None), (3, 1))
            )
            if not self.same(("mul", slope, integer(2)), again):
                return None
            roots.append(("div", ("neg", start), slope))
        return self.same(roots[0], roots[1])

    def shown_sum(self, gold: Quantity, answer: RelationAnswer) -> bool:
        """Compare 25 with m+n=25: the sum that was asked for."""
        if not any(map(names_of, answer.terms)):
            # 1/2 = 0.5 is one number, 5 = 6 is none.
            return all(
                self.same(answer.terms[0], each) for each in answer.terms
            ) and self.quantities(gold, Quantity(answer.terms[-1]))
        return (
            set(answer.signs) == {"="}
            and not names_of(gold.tree)
            and not names_of(answer.terms[-1])
            and _is_sum_of_names(answer.terms[0])
            and self.quantities(gold, Quantity(answer.terms[-1]))
        )

    def shown_value(self, gold: RelationAnswer, answer: Quantity) -> bool:
        """Compare 1/2=0.5 with 0.5."""
        return not any(map(names_of, gold.terms)) and self.shown_sum(answer, gold)

    def matrices(self, gold: MatrixAnswer, answer: MatrixAnswer) -> bool:
        """Compare entry by entry."""
        return [len(row) for row in gold.rows] == [len(row) for row in answer.rows] and all(
            self.same(mine, other)
            for row, others in zip(gold.rows, answer.rows, strict=True)
            for mine, other in zip(row, others, strict=True)
        )

    def matrix_series(self, gold: MatrixAnswer, answer: Series) -> bool:
        """Compare a column or a row with a point."""
        entries = [each for row in gold.rows for each in row]
        if answer.brackets == "{}" or 1 not in (len(gold.rows), len(gold.rows[0])):
            return False
        return self._in_order([Quantity(each) for each in entries], answer.items)


def _flipped(
    compare: Callable[[Comparison, object, object], bool],
) -> Callable[[Comparison, object, object], bool]:
    return lambda self, gold, answer: compare(self, answer, gold)


# The first rule whose kinds fit decides; other kinds are never equal.
_RULES: list[tuple[tuple[type, type], Callable[..., bool]]] = [
    ((OptionAnswer, OptionAnswer), Comparison.options),
    ((OptionAnswer, object), Comparison.option_text),
    ((object, OptionAnswer), _flipped(Comparison.option_text)),
    ((NamedAnswer, NamedAnswer), Comparison.named),
    ((Assignments, Assignments), Comparison.assignments),
    ((Assignments, Series), Comparison.assigned_series),
    ((Series, Assignments), _flipped(Comparison.assigned_series)),
    ((NamedAnswer, object), Comparison.named_value),
    ((object, NamedAnswer), Comparison.value_named),
    ((WordAnswer, WordAnswer), Comparison.words),
    ((WordAnswer, object), Comparison.word_as_product),
    ((object, WordAnswer), _flipped(Comparison.word_as_product)),
    ((ClockTime, ClockTime), Comparison.times),
    ((ClockTime, object), Comparison.time_as_ratio),
    ((object, ClockTime), _flipped(Comparison.time_as_ratio)),
    ((Quantity, Quantity), Comparison.quantities),
    ((Numeral, Numeral), Comparison.numerals),
    ((Numeral, Quantity), Comparison.digits),
    ((Quantity, Numeral), Comparison.with_base_ten),
    ((RatioAnswer, RatioAnswer), Comparison.ratios),
    ((RatioAnswer, Quantity), Comparison.ratio_value),
    ((Quantity, RatioAnswer), _flipped(Comparison.ratio_value)),
    ((Series, Series), Comparison.series),
    ((RealSet, RealSet | Series), Comparison.as_sets),
    ((Series, RealSet), Comparison.as_sets),
    ((MatrixAnswer, MatrixAnswer), Comparison.matrices),
    ((MatrixAnswer, Series), Comparison.matrix_series),
    ((Series, MatrixAnswer), _flipped(Comparison.matrix_series)),
    ((RelationAnswer, RelationAnswer), Comparison.relations),
    ((Quantity, RelationAnswer), Comparison.shown_sum),
    ((RelationAnswer, Quantity), Comparison.shown_value),
    ((Series, Quantity), Comparison.one_of_series),
    ((Quantity, Series), Comparison.comma),
    ((ResidueAnswer, ResidueAnswer), Comparison.residues),
    ((Quantity, ResidueAnswer), Comparison.residue_added),
]


def _points_of(value: Value) -> RealSet | None:
    if isinstance(value, Series) and value.brackets in ("{}", ""):
        points = [each.tree for each in value.items if isinstance(each, Quantity)]
        return (
            RealSet(("points", *points))
            if len(points) == len(value.items) and value.brackets
            else None
        )
    return interval_of(value)


def _renamed(answer: NamedAnswer, parameters: tuple[str, ...]) -> NamedAnswer:
    """Give the bound variables of a function other names."""
    if not isinstance(answer.value, Quantity):
        return answer
    tree = answer.value.tree
    new = dict(zip(answer.parameters, parameters, strict=True))
    return replace(answer, value=replace(answer.value, tree=_substituted(tree, new)))


def _substituted(tree: Tree, new: dict[str, str]) -> Tree:
    if tree[0] == "name":
        return ("name", new.get(tree[1], tree[1]))
    return tuple(_substituted(each, new) if isinstance(each, tuple) else each for each in tree)


def _put(tree: Tree, name: str, value: int | None) -> Tree:
    """Put a number in place of a name; the number 0 in place of the whole if it is None."""
    if value is None:
        return integer(0)
    if tree == ("name", name):
        return integer(value)
    return tuple(_put(each, name, value) if isinstance(each, tuple) else each for each in tree)


def _equation(named: NamedAnswer) -> RelationAnswer | None:
    if not isinstance(named.value, Quantity) or named.name[0] not in (
        "name",
        "apply",
        "mul",
        "call",
        "div",
    ):
        return None
    return RelationAnswer((named.name, named.value.tree), ("=",))


def _is_sum_of_names(tree: Tree) -> bool:
    return tree[0] == "name" or (tree[0] in ("add", "neg") and all(map(_is_sum_of_names, tree[1:])))


def _ends(form: Tree) -> list[Tree]:
    if form[0] == "interval":
        return [form[1], form[3]]
    if form[0] == "points":
        return list(form[1:])
    return [end for part in form[1:] for end in _ends(part)]


def _members(comparison: Comparison, form: Tree, ends: list[Tree]) -> list[bool]:
    """Return which ends, and which gaps between them, belong to a set: gap, end, gap, … gap."""

    def place(tree: Tree) -> int:
        return next((n for n, end in enumerate(ends) if comparison.same(tree, end)), 0)

    count = 2 * len(ends) + 1
    infinite = [end in (INFINITY, ("neg", INFINITY)) for end in ends]
    match form[0]:
        case "interval":
            low, high = 2 * place(form[1]) + 1, 2 * place(form[3]) + 1
            found = [low < n < high or (n == low and form[2] and low <= high and (low < high or form[4]))
                     or (n == high and form[4] and low < high) for n in range(count)]  # fmt: skip
        case "points":
            places = {2 * place(each) + 1 for each in form[1:]}
            found = [n in places for n in range(count)]
        case kind:
            left, right = (_members(comparison, part, ends) for part in form[1:])
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
        at = [_value(_put(tree, name, each), 0) for each in (0, 1, 2, 5)]
    except (_IrrationalError, ZeroDivisionError, TypeError):
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


def has_pi(tree: Tree) -> bool:
    """Tell whether pi is in a formula."""
    return tree == _PI or any(has_pi(each) for each in tree[1:] if isinstance(each, tuple))


def has_log(tree: Tree) -> bool:
    """Tell whether a formula has a logarithm without a base."""
    return (
        tree[:2] == ("call", "log")
        and len(tree) == 3
        or any(has_log(each) for each in tree[1:] if isinstance(each, tuple))
    )


def with_base(tree: Tree, base: Tree | None) -> Tree:
    """Give logarithms without a base the base; the natural one if it is None."""
    rest = tuple(with_base(each, base) if isinstance(each, tuple) else each for each in tree)
    if tree[:2] == ("call", "log") and len(tree) == 3:
        return ("call", "log", rest[2], base) if base else ("call", "ln", rest[2])
    return rest


# Numbers.


def is_real(number: Number) -> bool:
    """Tell whether a number has no imaginary part."""
    return not isinstance(number, tuple) or number[2]


def is_zero(number: Number) -> bool:
    """Tell whether a number is 0."""
    return number[0] == number[1] == 0 if isinstance(number, tuple) else number == 0


def is_positive(number: Number) -> bool:
    """Tell whether a number is above 0."""
    return number[0] > 0 and number[1] == 0 if isinstance(number, tuple) else number > 0


def as_float(number: Number) -> float:
    """Return a number, or an infinity, with the digits of a float."""
    if isinstance(number, float):
        return number
    value = as_decimal(number)[0]
    return float(max(min(value, Decimal("1e300")), Decimal("-1e300")))


def as_decimal(number: Number) -> Approximation:
    """Return a number with 45 digits."""
    if isinstance(number, tuple):
        return number
    if isinstance(number, float):
        return Decimal(number), Decimal(0), True
    real = _DIGITS.divide(Decimal(number.numerator), Decimal(number.denominator))
    return real, Decimal(0), True


def divided(left: Number, right: Number) -> Number:
    """Return the quotient of two numbers, of which the second is not 0."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left / right
    (a, b, _), (c, d, _), x = as_decimal(left), as_decimal(right), _DIGITS
    size = x.add(x.multiply(c, c), x.multiply(d, d))
    real = x.add(x.multiply(a, c), x.multiply(b, d))
    imaginary = x.subtract(x.multiply(b, c), x.multiply(a, d))
    return x.divide(real, size), x.divide(imaginary, size), is_real(left) and is_real(right)


def close(left: Number, right: Number, *, decimal: bool) -> bool:
    """Tell whether two numbers are equal, or agree to a millionth if one is written as a decimal."""
    if isinstance(left, float) or isinstance(right, float):
        return left == right
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        gap = abs(left - right)
        return gap == 0 or (
            decimal and gap <= Fraction(5, 10**7) and gap * 10**6 <= max(abs(left), abs(right))
        )
    (a, b, _), (c, d, _), x = as_decimal(left), as_decimal(right), _DIGITS
    try:
        gap_size = max(x.abs(x.subtract(a, c)), x.abs(x.subtract(b, d)))
        size = max(map(x.abs, (a, b, c, d)))
        return gap_size <= x.multiply(size, _DECIMAL if decimal else _EXACT)
    except (InvalidOperation, Overflow) as error:
        raise UndecidedError("a number is too large") from error
