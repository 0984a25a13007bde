"""Formulas are compared by their values at a few points.

The points are rational and differ for every name. Rational values are exact, and computed here; the
others come from the worker, with 40 digits. Different formulas agree at all points as good as
never, and equal formulas never differ. So nothing needs to be simplified.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation, Overflow
from fractions import Fraction
from functools import lru_cache

from pdr_graph.answers.expression import (
    INFINITY,
    Tree,
    has_decimal,
    has_log,
    integer,
    names_of,
    with_base,
)

# Of all names: near to 0 and far from it, since there an absolute value differs from its content.
_COMMON = (1, 1, -1, 37, -41, 1009, -1013, Fraction(1, 53))
# Of these sizes, with signs that differ from name to name, so that xy may be negative, and large.
_SIGNED = (1,) * 6 + (31,) * 6
# Whole numbers, where floors differ from ceilings: one is even, one odd, one negative.
_NUM_WHOLE = 3
NUM_POINTS = len(_COMMON) + len(_SIGNED) + _NUM_WHOLE
"""Points of each name."""


_FEWEST_POINTS = 2


# In bits: a larger rational is left to the worker. Common factors of fractions take time.
_LARGEST = 4096
_LARGEST_INTEGER = 1 << 17
# From here on, two numbers with equal first figures may still differ by one.
_FIGURES = Decimal("1e36")


_DIGITS = Context(prec=45, Emax=MAX_EMAX, Emin=MIN_EMIN)


_EXACT = Decimal("1e-37")


# As in `exact.py`: one part in a million, and half of the sixth decimal of a rational number.
_DECIMAL = Decimal("1.001e-6")


Approximation = tuple[Decimal, Decimal, bool]
"""Real and imaginary part, and whether every step of the computation was real: roots of negative
numbers are not, though their product may be."""


Number = Fraction | Approximation | float
"""A float is an infinity."""


class UndecidedError(ValueError):
    """The comparison needs more than values at points."""


class IrrationalError(ValueError):
    """A value is not rational, or too large to be computed here."""


@lru_cache(maxsize=4096)
def point(name: str, index: int) -> Fraction:
    """Return a value of a name: near to 0 and far, of both signs, and whole numbers."""
    seed = zlib.crc32(f"{name}:{index}".encode())
    size = Fraction(seed % 9_973 + 2_003, 4_999 + (seed >> 16) % 97)
    if index < len(_COMMON):
        return size * _COMMON[index]
    place = index - len(_COMMON)
    if place < len(_SIGNED):
        # No two letters have the same six signs.
        code = ord(name) - 64 if len(name) == 1 else zlib.crc32(name.encode())
        return size * _SIGNED[place] * (-1 if code >> place % 6 & 1 else 1)
    whole = Fraction(2 * (seed % 89) + 4 + index % 2)
    return -whole if index == NUM_POINTS - 1 else whole


@lru_cache(maxsize=8192)
def rational_at(tree: Tree, index: int) -> Fraction | None:
    """Return the exact value at a point; None where there is none.

    Raises:
        IrrationalError: The value is not rational, or too large.
    """
    try:
        return value_at(tree, index)
    except ZeroDivisionError:
        return None


def value_at(tree: Tree, index: int) -> Fraction:
    """Return the exact value at a point.

    Raises:
        IrrationalError: The value is not rational, or too large.
        ZeroDivisionError: There is none.
    """
    kind = tree[0]
    if kind in ("num", "dec"):
        return Fraction(tree[1], tree[2])
    if kind == "name":
        return point(tree[1], index)
    if kind == "apply":
        return _applied(tree[1], [value_at(each, index) for each in tree[2:]])
    if kind in ("const", "deg", "pm", "mp") or (kind == "call" and tree[1] not in _RATIONAL_CALLS):
        raise IrrationalError
    values = [value_at(each, index) for each in tree[1:] if isinstance(each, tuple)]
    result = _RATIONAL_CALLS[tree[1]](*values) if kind == "call" else _RATIONAL[kind](*values)
    if _size(result) > (_LARGEST_INTEGER if result.denominator == 1 else _LARGEST):
        raise IrrationalError
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
    whole = base.denominator == 1 and exponent > 0
    if (
        abs(exponent) * _size(base) > (_LARGEST_INTEGER if whole else _LARGEST)
        and abs(base) != 1
        and base != 0
    ):
        raise IrrationalError
    if base == 0 and exponent < 0:
        raise ZeroDivisionError
    if base in (0, 1, -1) and abs(exponent) > 10**6:
        return Fraction(1) if base == 1 or (base == -1 and exponent % 2 == 0) else base
    return base**exponent.numerator


def _size(value: Fraction) -> int:
    """Return a size in bits."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _never() -> Fraction:
    raise IrrationalError


def _root(value: Fraction, index: Fraction) -> Fraction:
    """Return a root that is rational; of a negative number the real one."""
    if index.denominator != 1 or not 1 <= index <= 64:
        raise IrrationalError
    degree = index.numerator
    if value < 0:
        if degree % 2 == 0:
            raise IrrationalError
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
            raise IrrationalError
        parts.append(found)
    return Fraction(*parts)


def _factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or not 0 <= value <= 900:
        raise IrrationalError
    return Fraction(math.factorial(int(value)))


def _binomial(above: Fraction, below: Fraction) -> Fraction:
    if above.denominator != 1 or below.denominator != 1 or not 0 <= above <= 900 or below < 0:
        raise IrrationalError
    return Fraction(math.comb(int(above), int(below)))


def _integers(function: Callable[..., int], *values: Fraction) -> Fraction:
    if any(each.denominator != 1 for each in values):
        raise IrrationalError
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
        return rational_at(tree, 0) if not names_of(tree) else None
    except (IrrationalError, TypeError):
        return None


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
    """Tell whether two numbers are equal, or agree to a millionth if one is a decimal."""
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


@dataclass(slots=True)
class FormulaComparison:
    """Compares formulas by the values that are known.

    A formula whose values are not known counts as different, and is added to `missing`. The caller
    evaluates these and compares again.
    """

    known: dict[Tree, list[Number | None] | None]
    """Values at the points, each None where there is none; None if there is no value anywhere."""
    missing: list[Tree] = field(default_factory=list)

    def values(self, tree: Tree) -> list[Number | None] | None:
        """Return the values of a formula at the points; None if they are not known yet."""
        if tree in (INFINITY, ("neg", INFINITY)):
            return [math.inf if tree == INFINITY else -math.inf]
        count = NUM_POINTS if names_of(tree) else 1
        try:
            return [rational_at(tree, index) for index in range(count)]
        except (IrrationalError, TypeError, OverflowError):
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
        if pairs is None or not all(close(a, b, decimal=decimal) for a, b in pairs):
            return False
        if len(pairs) == 1 and any(
            isinstance(each, tuple) and abs(each[0]) > _FIGURES for each in pairs[0]
        ):
            raise UndecidedError("numbers of so many figures may differ in the last")
        return True

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
        if len(quotients) < min(_FEWEST_POINTS, len(pairs)):
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
