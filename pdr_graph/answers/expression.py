r"""Reads one mathematical expression into a small tree.

A tree is plain data, so that it can be sent to a worker and serve as a key:

    ("num", 3, 2)           the rational number 3/2
    ("dec", 3, 2)           the same, written as the decimal 1.5
    ("name", "x_1")         a variable; ("const", "pi") is pi, e, i or oo
    ("add" | "mul", a, b)   also ("div" | "pow" | "root", a, b), ("neg" | "percent" | "deg", a)
    ("pm" | "mp", a)        a with both signs
    ("call", "sin", a)      a known function; ("apply", "f", a) is one that has no formula

Reading is linear in the text, and bounded in length and depth. What is not understood raises
`UnreadableError`: a letter is a variable, but a word is never taken for a product of its letters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pdr_graph.answers.tokens import (
    CLOSERS,
    FUNCTIONS,
    GREEK,
    OPENING,
    OtherMeaningError,
    Token,
    UnreadableError,
    word_set,
)

# A name and its parts: strings, integers and other trees.
Tree = tuple[Any, ...]


_DEEPEST = 40
"""Brackets in brackets, and arguments in arguments: a level costs several calls."""
_DEEPEST_TREE = 150
"""A sum of 150 terms has as many levels; functions of trees call themselves."""


_CONSTANTS = {"pi": ("const", "pi"), "infinity": ("const", "oo"), "infty": ("const", "oo"),
              "inf": ("const", "oo"), "Infinity": ("const", "oo"), "oo": ("const", "oo"),
              "e": ("const", "e"), "i": ("const", "i")}  # fmt: skip


# Longest first, so that "arcsin" is not "a", "r", "c" and "sin".
_NAMES_IN_RUN = re.compile(
    "|".join(
        sorted(
            [*FUNCTIONS, "pi", "infinity", *(g for g in GREEK if len(g) > 3)],
            key=len,
            reverse=True,
        )
    )
    + "|[A-Za-z]"
)


_PROSE = word_set("not the and for all are was but has its than you yes")


# Marks of a name: \vec{v} is one.
_NAME_MARKS = word_set(
    "operatorname mathrm mathcal mathbb vec hat overline bar tilde overrightarrow widehat"
)
# Commands that math-verify reads past.
_UNLIKE = word_set(
    "lim limsup liminf partial nabla land lor wedge vee neg lnot to angle measuredangle triangle"
)
_MOST_LETTERS = 4
"""Variables side by side without a space; longer runs are words."""


_BARS = frozenset([r"\overline", r"\bar", r"\dot"])
_APPLIED = frozenset("fgFGE")


_TIMES = frozenset((r"\cdot", r"\times", r"\ast", "*", r"\star"))


def depth_of_tree(tree: Tree) -> int:
    """Return the number of levels, without calling itself."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [part for each in level for part in each[1:] if isinstance(part, tuple)]
    return depth


def names_of(tree: Tree) -> frozenset[str]:
    """Return the names in a tree."""
    if tree[0] == "name":
        return frozenset([tree[1]])
    found: frozenset[str] = frozenset([tree[1]] if tree[0] == "apply" else [])
    for each in tree[1:]:
        if isinstance(each, tuple):
            found |= names_of(each)
    return found


def integer(value: int) -> Tree:
    """Return the tree of an integer."""
    return ("num", value, 1)


def rational_tree(value: Fraction, *, decimal: bool = False) -> Tree:
    """Return the tree of a rational number."""
    return ("dec" if decimal else "num", value.numerator, value.denominator)


def formula(parts: Sequence[Token]) -> Tree:
    """Read one expression.

    Raises:
        UnreadableError: It is no expression, or something follows it.
    """
    return _formula(tuple(parts))


@lru_cache(maxsize=4096)
def _formula(parts: tuple[Token, ...]) -> Tree:
    if not parts:
        raise UnreadableError("an expression is missing")
    tree = _Parser(parts).whole()
    if depth_of_tree(tree) > _DEEPEST_TREE:
        raise UnreadableError("an expression is too long")
    return tree


class _Parser:
    """Reads tokens from left to right, by recursive descent."""

    def __init__(self, parts: Sequence[Token]) -> None:
        self._parts = list(parts)
        self._place = 0
        self._depth = 0
        self._bars = 0
        """Absolute values that are open."""

    def whole(self) -> Tree:
        tree = self._sum()
        if self._place < len(self._parts):
            raise UnreadableError(f"{self._peek()!r} is not understood here")
        return tree

    def _peek(self, ahead: int = 0) -> str:
        place = self._place + ahead
        return self._parts[place].text if place < len(self._parts) else ""

    def _kind(self, ahead: int = 0) -> str:
        place = self._place + ahead
        return self._parts[place].kind if place < len(self._parts) else ""

    def _take(self) -> Token:
        if self._place >= len(self._parts):
            raise UnreadableError("the expression ends too early")
        self._place += 1
        return self._parts[self._place - 1]

    def _expect(self, text: str) -> None:
        if self._peek() != text:
            raise UnreadableError(f"{text!r} is missing")
        self._place += 1

    def _sum(self) -> Tree:
        tree = self._signed_term()
        while (sign := self._peek()) in ("+", "-", r"\pm", r"\mp") and self._kind() != "words":
            self._place += 1
            term = self._signed_term()
            if sign != "+":
                term = ({"-": "neg", r"\pm": "pm", r"\mp": "mp"}[sign], term)
            tree = ("add", tree, term)
        return tree

    def _signed_term(self) -> Tree:
        signs: list[str] = []
        while (sign := self._peek()) in ("+", "-", r"\pm", r"\mp") and len(signs) < 3:
            signs.append(sign)
            self._place += 1
        tree = self._product()
        for sign in reversed(signs):
            if sign != "+":
                tree = ({"-": "neg", r"\pm": "pm", r"\mp": "mp"}[sign], tree)
        return tree

    def _product(self, *, implicit_only: bool = False) -> Tree:
        tree = self._power()
        while True:
            sign = self._peek()
            if sign in _TIMES and not implicit_only:
                self._place += 1
                factor = self._signed_factor()
                if _is_vector(tree) and _is_vector(factor):
                    raise OtherMeaningError("a product of vectors is not understood")
                tree = ("mul", tree, factor)
            elif sign in ("/", r"\div") and not implicit_only:
                self._place += 1
                tree = _quotient(tree, self._signed_factor())
            elif self._starts_atom():
                if implicit_only and (sign.lstrip("\\") in FUNCTIONS):
                    return tree
                if self._kind() == "number" and self._parts[self._place - 1].kind == "number":
                    raise OtherMeaningError(f"there is no sign between two numbers before {sign!r}")
                tree = ("mul", tree, self._power())
            else:
                return tree

    def _signed_factor(self) -> Tree:
        if self._peek() in ("-", "+"):
            sign = self._take().text
            factor = self._power()
            return ("neg", factor) if sign == "-" else factor
        return self._power()

    def _starts_atom(self) -> bool:
        kind, text = self._kind(), self._peek()
        if kind in ("number", "letters"):
            return True
        if text in ("|", r"\vert"):
            return self._bars == 0
        return text in OPENING or (kind == "command" and self._is_atom_command(text))

    @staticmethod
    def _is_atom_command(text: str) -> bool:
        name = text[1:]
        return name in _ATOM_COMMANDS or name in FUNCTIONS or name in GREEK

    def _power(self) -> Tree:
        tree = self._atom()
        while True:
            text = self._peek()
            if text in ("^", "**"):
                self._place += 1
                if self._degree():
                    tree = ("deg", tree)
                else:
                    # From the right, as in 2^{3^2}; x^2^3 is read in the same way.
                    return self._postfix(("pow", tree, self._exponent()))
            elif text in ("!", "%", r"\%", "'", r"\degree"):
                return self._postfix(tree)
            else:
                return tree

    def _postfix(self, tree: Tree) -> Tree:
        while (text := self._peek()) in ("!", "%", r"\%", r"\degree"):
            self._place += 1
            if text == "!":
                if self._peek() == "!":
                    raise OtherMeaningError("a double factorial is not understood")
                tree = ("call", "factorial", tree)
            else:
                tree = ("deg" if text == r"\degree" else "percent", tree)
        if self._peek() in ("^", "**"):
            self._place += 1
            if self._degree():
                return ("deg", tree)
            return ("pow", tree, self._exponent())
        return tree

    def _degree(self) -> bool:
        for circle in (("\\circ",), ("{", "\\circ", "}"), ("o",)):
            if tuple(self._peek(n) for n in range(len(circle))) == circle:
                self._place += len(circle)
                return True
        return False

    def _exponent(self) -> Tree:
        self._descend()
        tree = self._read_exponent()
        self._depth -= 1
        return tree

    def _descend(self) -> None:
        """Count a level of nesting; a failure ends the parser, so it need not be counted back."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise UnreadableError("an expression has too many levels")

    def _read_exponent(self) -> Tree:
        if self._peek() == "{":
            return self._group()
        if self._peek() in ("-", "+"):
            sign = self._take().text
            tree = self._exponent()
            return ("neg", tree) if sign == "-" else tree
        if self._kind() == "letters":
            return self._first_letter()
        if self._kind() == "number":
            return _number(self._take().text)
        tree = self._atom()
        if self._peek() in ("^", "**"):
            self._place += 1
            tree = ("pow", tree, self._exponent())
        return tree

    def _first_letter(self) -> Tree:
        """Take one name of a run: x^ny is x^n times y."""
        token = self._take()
        found = _NAMES_IN_RUN.match(token.text)
        assert found is not None
        if found.group() in FUNCTIONS:
            self._place -= 1
            return self._atom()
        if rest := token.text[found.end() :]:
            self._place -= 1
            self._parts[self._place] = Token("letters", rest)
        return _CONSTANTS.get(found.group(), ("name", found.group()))

    def _group(self) -> Tree:
        """Read what is in brackets."""
        opening = self._take().text
        closing = CLOSERS[opening]
        if opening == "|":
            self._bars += 1
        elif self._bars:
            bars, self._bars = self._bars, 0
            tree = self._sum()
            self._bars = bars
            self._expect(closing)
            return tree
        tree = self._sum()
        self._expect(closing)
        if opening in ("|", r"\vert"):
            self._bars -= 1
        return tree

    def _argument(self) -> Tree:
        r"""Read an argument of LaTeX: in braces, or one digit or letter, as in \frac12."""
        if self._peek() == "{":
            return self._group()
        token = self._take()
        if token.kind in ("number", "letters") and len(token.text) > 1:
            self._place -= 1
            self._parts[self._place] = Token(token.kind, token.text[1:])
            token = Token(token.kind, token.text[0])
            return _number(token.text) if token.kind == "number" else _single(token.text)
        self._place -= 1
        return self._atom()

    def _atom(self) -> Tree:
        self._descend()
        tree = self._read_atom()
        self._depth -= 1
        return tree

    def _read_atom(self) -> Tree:
        token = self._take()
        text = token.text
        if token.kind == "number":
            return self._figures(text)
        if token.kind == "letters":
            return self._run(text)
        if text == "." and self._peek() in _BARS:
            return self._repeating("0.")
        if text in CLOSERS:
            self._place -= 1
            tree = self._group()
            if text in ("|", r"\lvert", r"\vert"):
                return ("call", "abs", tree)
            return ("call", text[2:], tree) if text in (r"\lfloor", r"\lceil") else tree
        if token.kind == "command":
            return self._command(text[1:])
        if token.kind == "words":
            raise UnreadableError(f"the words {text.strip()!r} are no mathematics")
        raise UnreadableError(f"{text!r} is not understood here")

    def _figures(self, text: str) -> Tree:
        if "." in text and self._peek() in _BARS:
            return self._repeating(text)
        if (
            "." in text
            and self._peek() == "("
            and self._kind(1) == "number"
            and self._peek(2) == ")"
        ):
            if not text.endswith("."):
                raise UnreadableError(f"{text}({self._peek(1)}) is a product, or repeats for ever")
            self._place += 3
            return repeating(text, self._peek(-2))
        if self._peek() == "_" and text.isdigit():
            self._place += 1
            return numeral(text, self._script())
        tree = _number(text)
        if text.isdigit():
            return self._mixed(tree)
        return tree

    def _mixed(self, whole: Tree) -> Tree:
        r"""Read the rest of 2\frac12 or 2 1/2; the whole number itself if there is none."""
        place = self._place
        if self._peek() in (r"\frac", r"\dfrac", r"\tfrac"):
            self._place += 1
            above, below = self._argument(), self._argument()
            if above[0] == below[0] == "num" and below[1] and self._peek() != "^":
                return ("add", whole, ("div", above, below))
        elif self._kind() == self._kind(2) == "number" and self._peek(1) == "/":
            above, below = _number(self._peek()), _number(self._peek(2))
            if above[0] == below[0] == "num" and above[2] == below[2] == 1 and below[1]:
                self._place += 3
                return ("add", whole, ("div", above, below))
        self._place = place
        return whole

    def _repeating(self, start: str) -> Tree:
        period = ""
        if self._peek() == r"\dot":
            while self._peek() == r"\dot":
                self._place += 1
                braced = self._peek() == "{"
                self._place += braced
                digits = self._take().text
                if not braced and len(digits) > 1:
                    self._parts[self._place - 1] = Token("number", digits[1:])
                    self._place -= 1
                    digits = digits[0]
                period += digits
                if braced:
                    self._expect("}")
                if self._kind() == "number" and self._peek(1) == r"\dot":
                    period += self._take().text
        else:
            self._place += 1
            braced = self._peek() == "{"
            self._place += braced
            period = self._take().text
            if braced:
                self._expect("}")
        if self._kind() == "number":
            raise UnreadableError("a figure follows the last of a decimal that has none")
        return repeating(start, period)

    def _script(self) -> str:
        """Return a subscript as text, without braces and space."""
        if self._peek() != "{":
            token = self._take()
            if (
                token.kind in ("number", "letters")
                and len(token.text) > 1
                and token.kind == "letters"
            ):
                self._parts[self._place - 1] = Token("letters", token.text[1:])
                self._place -= 1
                return token.text[0]
            return token.text
        self._place += 1
        parts, depth = [], 0
        while depth or self._peek() != "}":
            text = self._take().text
            depth += (text == "{") - (text == "}")
            parts.append(text.strip())
        self._place += 1
        return "".join(parts)

    def _run(self, text: str) -> Tree:
        """Read letters side by side: names, or a function and its argument."""
        names = _NAMES_IN_RUN.findall(text)
        if text.lower() in _PROSE:
            raise UnreadableError(f"the word {text!r} is no mathematics")
        if sum(len(name) == 1 for name in names) > _MOST_LETTERS:
            raise UnreadableError(f"the word {text!r} is no mathematics")
        if rest := text[len(names[0]) :]:
            self._place -= 1
            self._parts[self._place] = Token("letters", rest)
        name = names[0]
        if name in FUNCTIONS:
            return self._call(FUNCTIONS[name])
        return _single(name) if rest else self._named(name)

    def _named(self, name: str) -> Tree:
        """Return a variable with its primes and subscript, or a function of no known formula."""
        if name in _CONSTANTS and self._peek() not in ("_", "'"):
            return _CONSTANTS[name]
        if self._peek() == "_":
            self._place += 1
            name += "_" + self._script()
        while self._peek() == "'":
            self._place += 1
            name += "'"
            if self._peek() in ("s", "t", "re", "ll", "ve") and not self._parts[self._place].spaced:
                raise UnreadableError("a word with an apostrophe is no mathematics")
        if (name[0] in _APPLIED and self._peek() == "(") or (name == "E" and self._peek() == "["):
            return self._applied(name)
        if name.isupper() and self._peek() == "[":
            raise UnreadableError(f"{name}[ is not understood")
        return ("name", name)

    def _applied(self, name: str) -> Tree:
        closing = CLOSERS[self._take().text]
        arguments = [self._sum()]
        while self._peek() == ",":
            self._place += 1
            arguments.append(self._sum())
        self._expect(closing)
        return ("apply", name, *arguments)

    def _command(self, name: str) -> Tree:
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            return _quotient(self._argument(), self._argument())
        if name in ("binom", "dbinom", "tbinom"):
            return ("call", "binom", self._argument(), self._argument())
        if name == "sqrt" and self._peek() == "[":
            index = self._group()
            return ("root", self._root_argument(), index)
        if name in _NAME_MARKS:
            return (
                self._named(name + "{" + self._script() + "}")
                if self._peek() == "{"
                else self._atom()
            )
        if name in FUNCTIONS:
            return self._call(FUNCTIONS[name])
        if name in ("infty", "pi"):
            return _CONSTANTS[name]
        if name in GREEK or name in ("ell", "hbar"):
            return self._named(name)
        kind = OtherMeaningError if name in _UNLIKE else UnreadableError
        raise kind(f"{chr(92)}{name} is not understood")

    def _root_argument(self) -> Tree:
        if self._peek() == "{" or self._kind() != "number":
            return self._argument() if self._peek() == "{" else self._atom()
        return _number(self._take().text)

    def _call(self, name: str) -> Tree:
        """Read the argument of a function, which may have no brackets."""
        if name in ("sqrt", "cbrt"):
            return ("root", self._root_argument(), integer(2 if name == "sqrt" else 3))
        base: Tree | None = None
        power: Tree | None = None
        while self._peek() in ("_", "^"):
            mark = self._take().text
            if mark == "_":
                base = self._exponent()
            else:
                power = self._exponent()
        if power == ("neg", integer(1)) and f"arc{name}" in FUNCTIONS:
            name, power = f"arc{name}", None
        arguments = self._call_arguments(name)
        if name == "log":
            tree: Tree = ("call", "log", *arguments, *([base] if base else []))
        elif base is not None:
            raise UnreadableError(f"a subscript of {name} is not understood")
        elif name == "exp":
            tree = ("pow", ("const", "e"), arguments[0])
        elif name == "lg":
            tree = ("call", "log", *arguments, integer(10))
        else:
            tree = ("call", name, *arguments)
        return ("pow", tree, power) if power is not None else tree

    def _call_arguments(self, name: str) -> list[Tree]:
        if self._peek() in ("(", "[", "{"):
            closing = CLOSERS[self._take().text]
            bars, self._bars = self._bars, 0
            arguments = [self._sum()]
            while self._peek() == ",":
                self._place += 1
                arguments.append(self._sum())
            self._expect(closing)
            self._bars = bars
            return arguments
        sign = self._peek() == "-"
        self._place += sign
        argument = self._product(implicit_only=True)
        if self._peek() == "/":
            raise UnreadableError(f"the argument of {name} has no brackets, and may end before '/'")
        return [("neg", argument) if sign else argument]


_ATOM_COMMANDS = _NAME_MARKS | word_set(
    "frac dfrac tfrac cfrac binom dbinom tbinom sqrt pi infty ell hbar"
)


def _is_vector(tree: Tree) -> bool:
    marks = ("vec", "overrightarrow", "hat", "widehat")
    return bool(tree[0] == "name" and tree[1].startswith(marks))


def _quotient(above: Tree, below: Tree) -> Tree:
    """Return a fraction.

    Raises:
        UnreadableError: It is a derivative, such as dy/dx.
    """
    if below[0] == "mul" and below[1] == _DIFFERENTIAL and _DIFFERENTIAL in (above, above[1]):
        raise OtherMeaningError("a derivative is not understood")
    return ("div", above, below)


_DIFFERENTIAL: Tree = ("name", "d")


def _single(name: str) -> Tree:
    return _CONSTANTS.get(name, ("name", name)) if not name.isdigit() else integer(int(name))


def _number(text: str) -> Tree:
    text = text.replace(",", "")
    mantissa, _, exponent = text.lower().partition("e")
    if not mantissa.strip("."):
        raise UnreadableError("a number has no figures")
    if len(exponent) > 5 or len(mantissa) > 400:
        raise UnreadableError("a number is too long")
    value = Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)
    return rational_tree(value, decimal="." in text.rstrip("."))


def numeral(digits: str, base: str) -> Tree:
    """Return a numeral of another base, such as 1010_2.

    Raises:
        UnreadableError: The base is no number, or the digits are not of that base.
    """
    base = base.strip("()")
    if not base.isdigit() or len(base) > 2 or len(digits) > 200:
        raise UnreadableError(f"{base!r} is no base")
    try:
        value = int(digits, int(base)) if int(base) > 1 else -1
    except ValueError:
        value = -1
    if value < 0:
        raise UnreadableError(f"{digits} has digits that base {base} does not have")
    return integer(value)


def repeating(start: str, period: str) -> Tree:
    """Return the value of a repeating decimal: 0.1 and 6 are 1/6."""
    if not period.isdigit() or len(start) + len(period) > 100:
        raise UnreadableError(f"{period!r} does not repeat")
    places = len(start.partition(".")[2])
    tail = Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    return rational_tree(Fraction(start.rstrip(".") or 0) + tail)


def is_formula(parts: list[Token]) -> bool:
    """Tell whether this is one expression."""
    try:
        formula(parts)
    except UnreadableError:
        return False
    return True


def has_sign(tree: Tree) -> bool:
    """Tell whether there is a plus-minus in a formula."""
    return tree[0] in ("pm", "mp") or any(
        has_sign(each) for each in tree[1:] if isinstance(each, tuple)
    )


def signed(tree: Tree, plus: bool) -> Tree:
    """Choose the upper or the lower sign everywhere."""
    if tree[0] in ("pm", "mp"):
        inner = signed(tree[1], plus)
        return inner if (tree[0] == "pm") == plus else ("neg", inner)
    return tuple(signed(each, plus) if isinstance(each, tuple) else each for each in tree)


_PI: Tree = ("const", "pi")
INFINITY: Tree = ("const", "oo")


def has_decimal(tree: Tree) -> bool:
    """Tell whether a number is written as a decimal, so that it may be rounded."""
    return tree[0] == "dec" or any(
        has_decimal(each) for each in tree[1:] if isinstance(each, tuple)
    )


def renamed(tree: Tree, new: dict[str, str]) -> Tree:
    """Give names other names."""
    if tree[0] == "name":
        return ("name", new.get(tree[1], tree[1]))
    return tuple(renamed(each, new) if isinstance(each, tuple) else each for each in tree)


def put(tree: Tree, name: str, value: int | None) -> Tree:
    """Put a number in place of a name; the number 0 in place of the whole if it is None."""
    if value is None:
        return integer(0)
    if tree == ("name", name):
        return integer(value)
    return tuple(put(each, name, value) if isinstance(each, tuple) else each for each in tree)


def is_in_radians(tree: Tree) -> bool:
    """Tell whether a formula has pi or an inverse function of an angle in it."""
    if tree == _PI or (tree[0] == "call" and tree[1].startswith("arc")):
        return True
    return any(is_in_radians(each) for each in tree[1:] if isinstance(each, tuple))


def has_log(tree: Tree) -> bool:
    """Tell whether a formula has a logarithm without a base."""
    return (tree[:2] == ("call", "log") and len(tree) == 3) or any(
        has_log(each) for each in tree[1:] if isinstance(each, tuple)
    )


def with_base(tree: Tree, base: Tree | None) -> Tree:
    """Give logarithms without a base the base; the natural one if it is None."""
    rest = tuple(with_base(each, base) if isinstance(each, tuple) else each for each in tree)
    if tree[:2] == ("call", "log") and len(tree) == 3:
        return ("call", "log", rest[2], base) if base else ("call", "ln", rest[2])
    return rest
