r"""Reads an answer as what it is.

The kind is found before any algebra, since a word is no product of letters, and an interval is no
point. What is not understood is `UnreadableAnswer`, with the reason. The rules are in the table of
`docs/explanation/answers.md`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache, reduce

from pdr_graph.answers.expression import (
    INFINITY,
    Tree,
    formula,
    has_sign,
    is_formula,
    names_of,
    rational_tree,
    signed,
)
from pdr_graph.answers.quantity import Quantity, quantity_of
from pdr_graph.answers.tokens import (
    LONGEST_EXPRESSION,
    OtherMeaningError,
    Token,
    UnreadableError,
    depth_of,
    split,
    text_of,
    tokens,
    unreversed,
)
from pdr_graph.answers.values import (
    EMPTY,
    LINE,
    Assignments,
    MatrixAnswer,
    NamedAnswer,
    OptionAnswer,
    RatioAnswer,
    RealSet,
    RelationAnswer,
    ResidueAnswer,
    Series,
    UnreadableAnswer,
    Value,
    WordAnswer,
    interval_of,
)
from pdr_graph.answers.words import (
    NUMBER_SETS,
    TEXT,
    numeral_of,
    phrase,
    plain_text,
    time_or_date,
    words_of,
)

_SIGNS = {
    "=": "=", "<": "<", r"\lt": "<", ">": ">", r"\gt": ">", "<=": "<=", r"\le": "<=", r"\leq": "<=",
    r"\leqslant": "<=", ">=": ">=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=", "!=": "!=",
    r"\ne": "!=", r"\neq": "!=", r"\in": "in", r"\approx": "=", r"\equiv": "=", r"\coloneqq": "=",
}  # fmt: skip


_JOINTS = {
    ",": ",", ";": ",", "and": "and", "or": "or", r"\lor": "or", r"\land": "and", r"\vee": "or",
    r"\wedge": "and", "&": "and", "或": "or", "和": "and", "且": "and",
}  # fmt: skip


_LOGIC = frozenset([r"\lor", r"\land", r"\vee", r"\wedge"])
_SET_SIGNS = {r"\cup": "union", r"\bigcup": "union", r"\cap": "inter", r"\setminus": "minus",
              r"\backslash": "minus"}  # fmt: skip


_MOST_ITEMS = 40


_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("$", "$"))


_OPTION = re.compile(
    r"(?:(?i:option|choice) )?\(([A-J])\)(?:\s+(\S.*))?|(?i:option|choice) ([A-J])"
    r"|([A-J])[).:]\s+(\S.*)",
    re.S,
)


# Conditions that all hold, one below the other.
_SYSTEM = re.compile(
    r"\\begin\{(?:cases|aligned|gathered)\}(.*?)(?:\\\\\s*)?\\end\{\w+\}", re.DOTALL
)
_LEAD = re.compile(
    r"(?:approximately|about|roughly|around|exactly|approx\.?|answer:?|:|the answer is|only|equals?"
    r"|US)\s*$",
    re.I,
)


_TAIL = re.compile(
    r"^[\s,(]*(?:for (?:all|any|every|each)|where|with|whenever|exactly|only\b|approximately)",
    re.I,
)


# Values for several ranges: 6 for n=1, 7 for n=2.
_MORE_RANGES = re.compile(r"\b(?:and|or|if|when)\b|for\b.*\bfor\b", re.DOTALL)
_LONGEST_TAIL = 60
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


def _answer(text: str) -> Value:
    plain = plain_text(text)
    for reader in (phrase, numeral_of, time_or_date, _option):
        if (value := reader(plain)) is not None:
            return value
    if (matrix := _matrix(text)) is not None:
        return matrix
    if (system := _SYSTEM.fullmatch(text.strip())) and "&" not in system[1]:
        return _list(tokens(re.sub(r"\\\\", " , ", system[1])))
    whole = TEXT.fullmatch(text.strip())
    parts = tokens(TEXT.sub(r"\1", text) if whole and re.search(r"\d", text) else text)
    return _list(unreversed(_qualified(parts)))


def _option(plain: str) -> Value | None:
    found = _OPTION.fullmatch(plain)
    if found is None:
        return None
    letter, rest = found[1] or found[3] or found[4], found[2] or found[5]
    if rest is None:
        return Quantity(("name", letter))
    if rest[0] in "+-*/^=<>":
        return None
    if _OPTION.fullmatch(rest):
        raise UnreadableError("an option stands in an option")
    return OptionAnswer(letter, _answer(rest))


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
    cells = [tuple(formula(tokens(cell)) for cell in row.split("&")) for row in rows]
    if (
        not cells
        or len(cells) * len(cells[0]) > _MOST_ITEMS
        or len({len(row) for row in cells}) > 1
    ):
        raise UnreadableError("the matrix is not understood")
    return MatrixAnswer(tuple(cells))


def _qualified(parts: list[Token]) -> list[Token]:
    """Remove words that follow and change nothing, such as "for all x", and labels before."""
    depth, begun = 0, False
    for place, part in enumerate(parts):
        depth += depth_of(part)
        if begun and not depth and _ends_here(parts, place):
            return _qualified_front(parts[:place])
        begun = begun or part.kind not in ("words", "letters") or len(part.text) == 1
    return _qualified_front(parts)


def _ends_here(parts: list[Token], place: int) -> bool:
    """Tell whether the rest changes nothing."""
    part = parts[place]
    if part.text in (",", "(") or part.text == r"\forall":
        return part.text == r"\forall" or _is_domain(parts[place + 1 : place + 10])
    if part.kind not in ("words", "letters") or part.text.strip()[:1].lower() not in "(fweoa":
        return False
    if len(parts) - place > _LONGEST_TAIL:
        return False
    rest = text_of(parts[place:])
    if _NEGATION.search(rest):
        return False
    one_range = part.text.strip() == "for" and not _MORE_RANGES.search(rest)
    return one_range or _TAIL.match(rest) is not None


def _is_domain(parts: list[Token]) -> bool:
    """Tell whether this says what kind of number a name is: n in Z."""
    texts = [part.text for part in parts]
    return (
        len(texts) >= 6
        and texts[1:3] == [r"\in", r"\mathbb"]
        and len(texts) <= 8
        and texts[4] in "ZR"
    )


def _qualified_front(parts: list[Token]) -> list[Token]:
    if len(parts) > 1 and parts[0].text.strip().lower() in ("negative", "minus"):
        return [Token("symbol", "-"), *parts[1:]]
    while parts and (
        (parts[0].kind == "words" and _LEAD.match(parts[0].text.strip()))
        or parts[0].text in (r"\approx", ":", "=", r"\therefore")
    ):
        parts = parts[1:]
    while parts and (parts[-1].text in (",", ".", ";") or not parts[-1].text.strip()):
        parts = parts[:-1]
    return parts


def _joint(part: Token) -> str | None:
    if part.kind == "words" or part.kind == "letters" or part.kind == "symbol":
        return _JOINTS.get(part.text.strip(" ,;").lower() or part.text.strip()[:1]) or None
    return _JOINTS.get(part.text) if part.kind == "command" else None


def _list(parts: list[Token]) -> Value:
    groups, _ = split(parts, lambda part: ";" if part.text == ";" else None)
    if len(groups) > 1 and all(groups) and any(part.text == "," for part in parts):
        return _combined(_shared_name([_list(group) for group in groups]), set())
    pieces, joints = split(parts, _joint)
    # ", and" is one joint.
    kept = [(piece, joint) for piece, joint in zip(pieces, ["", *joints], strict=True) if piece]
    if len(kept) == 1 and len(pieces) == 1:
        return _item(kept[0][0])
    if not kept or not pieces[0] or not pieces[-1] or len(kept) > _MOST_ITEMS:
        raise UnreadableError("a list has too many items, or one that is empty")
    words = {joint for joint in joints if joint} | {
        part.text for part in parts if part.text in _LOGIC
    }
    if [part.kind for part in parts] == ["number", "symbol", "number"] and not any(
        part.spaced for part in parts[1:]
    ):
        first, second = formula(parts[:1]), formula(parts[2:])
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
    if isinstance(first, NamedAnswer) and all(
        isinstance(each, Quantity | Series) for each in items[1:]
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
        for other in sets[1:]:
            form = (kind, form, other.form)
        return RealSet(form, sets[0].variable)
    if sets and "or" in joints and all(_as_set(each) is not None for each in items):
        forms = [part.form for each in items if (part := _as_set(each)) is not None]
        return RealSet(reduce(lambda form, part: ("union", form, part), forms), sets[0].variable)
    if _LOGIC & joints:
        raise OtherMeaningError("a sign of logic is not understood here")
    named = [each for each in items if isinstance(each, NamedAnswer)]
    if len(named) == len(items):
        names = [each.name for each in named]
        if len(set(names)) == len(names):
            return Series(tuple(items)) if "or" in joints else Assignments(tuple(named))
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


def _arrow(parts: list[Token]) -> Value | None:
    r"""Read f: x \mapsto 2x; None if it is no arrow."""
    texts = [part.text for part in parts[:4]]
    if len(parts) < 5 or (texts[1], texts[3]) != (":", r"\mapsto"):
        return None
    return NamedAnswer(("name", texts[0]), _set_or_single(parts[4:]), (texts[2],))


def _item(parts: list[Token]) -> Value:
    if (function := _arrow(parts)) is not None:
        return function
    pieces, signs = split(
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
    return _inequality([formula(piece) for piece in pieces], signs)


def _without_rounding(parts: list[Token], pieces: list[list[Token]]) -> list[list[Token]]:
    r"""Leave out what x = \frac13 \approx 0.33 says last."""
    kinds = [part.text for part in parts if part.text in _SIGNS and part.kind != "words"]
    first = next((n for n, kind in enumerate(kinds) if kind == r"\approx" and n), len(kinds))
    return pieces[: first + 1]


def _membership(pieces: list[list[Token]], signs: list[str]) -> Value:
    if len(signs) > 1:
        raise UnreadableError("the relation is not understood")
    value = _set_or_single(pieces[1])
    name = formula(pieces[0])
    if (found := interval_of(value)) is not None:
        return RealSet(found.form, name)
    return NamedAnswer(name, Series(value.items) if isinstance(value, Series) else value)


def _equation(pieces: list[list[Token]]) -> Value:
    last = pieces[-1]
    name, parameters = _name(pieces[0])
    if name is not None:
        # In f = g(x) = 2x the last counts; a = b = 3 is about two.
        middle = [formula(piece) for piece in pieces[1:-1]]
        if any(each[0] == "name" for each in middle):
            value = _set_or_single(last)
            return Assignments(tuple(NamedAnswer(each, value) for each in [name, *middle]))
        if name[0] == "names":
            return _named_tuple(name, last)
        return NamedAnswer(name, _set_or_single(last), parameters)
    trees = [formula(piece) for piece in pieces]
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
        return ("name", plain_text(parts[0].text).casefold()), ()
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
        return ("apply", texts[0], formula(parts[2:-1])), ()
    if texts[0] == "(" and texts[-1] == ")":
        pieces, _ = split(parts[1:-1], lambda part: "," if part.text == "," else None)
        if len(pieces) > 1:
            return ("names", *(formula(piece) for piece in pieces)), ()
    if any(part.text == ":" for part in parts):
        pieces, _ = split(parts, lambda part: ":" if part.text == ":" else None)
        return ("ratio", *(formula(piece) for piece in pieces)), ()
    tree = formula(parts)
    return (tree if _is_name(tree) else None), ()


def _is_name(tree: Tree) -> bool:
    r"""Tell whether a formula names a value: x, |AB|, \frac{NO}{BO}; 2x is no name."""
    match tree[0]:
        case "name" | "apply":
            return True
        case "mul" | "div":
            return all(
                _is_name(each) and (each[0] != "name" or each[1].isupper() or "_" in each[1])
                for each in tree[1:]
            )
        case "call":
            return tree[1] in ("abs", "sin", "cos", "tan") and _is_name(tree[2])
    return False


_FLIP = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!=", "=": "="}


def _inequality(terms: list[Tree], signs: list[str]) -> Value:
    if any(map(has_sign, terms)) and signs != ["!="]:
        raise UnreadableError("a plus-minus in an inequality is not understood")
    unknown = [place for place, term in enumerate(terms) if names_of(term)]
    if len(unknown) != 1 or any(sign == "=" for sign in signs):
        if all(sign in (">", ">=", "=") for sign in signs) and ">" in "".join(signs):
            terms, signs = terms[::-1], [_FLIP[sign] for sign in signs[::-1]]
        return RelationAnswer(tuple(terms), tuple(signs))
    place = unknown[0]
    subject, form = terms[place], LINE
    for left, sign, right in zip(terms, signs, terms[1:], strict=False):
        if left != subject and right != subject:
            continue
        bound = right if left is subject else left
        sign = sign if left is subject else _FLIP[sign]
        form = ("inter", form, _bounded(sign, bound))
    if len(terms) > 3 or (len({*signs} & {"<", "<="}) and len({*signs} & {">", ">="})):
        raise UnreadableError("the chain of inequalities is not understood")
    return RealSet(form, subject)


def _bounded(sign: str, bound: Tree) -> Tree:
    low = ("neg", INFINITY)
    match sign:
        case "<" | "<=":
            return ("interval", low, False, bound, sign == "<=")
        case ">" | ">=":
            return ("interval", bound, sign == ">=", INFINITY, False)
    bounds = [signed(bound, plus) for plus in (True, False)] if has_sign(bound) else [bound]
    return ("minus", LINE, ("points", *bounds))


def _set_or_single(parts: list[Token]) -> Value:
    pieces, signs = split(parts, lambda part: _SET_SIGNS.get(part.text))
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
    if (found := interval_of(value)) is not None:
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
        if letter in NUMBER_SETS:
            return NUMBER_SETS[letter]
    if len(texts) == 1 and texts[0] in (r"\emptyset", r"\varnothing"):
        return RealSet(EMPTY)
    opening, closing = texts[0], texts[-1]
    if (
        len(parts) < 2
        or depth_of(parts[0]) != 1
        or depth_of(parts[-1]) != -1
        or not _is_whole(parts)
    ):
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
    pieces, joints = split(
        inner, lambda part: "," if part.text in (",", ";") and part.kind != "words" else None
    )
    if not joints:
        if kind == "()" or (kind == "{}" and not is_set):
            # A bracket around one number is part of the formula.
            return _list(inner) if kind == "{}" or not is_formula(inner) else None
        if kind == "[]":
            return None
    if not all(pieces) or len(pieces) > _MOST_ITEMS:
        raise UnreadableError("an item of a list is missing")
    if kind in ("(]", "[)"):
        if len(pieces) != 2:
            raise UnreadableError("an interval has two ends")
        low, high = map(formula, pieces)
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


def _is_whole(parts: list[Token]) -> bool:
    depth = 0
    for part in parts[:-1]:
        depth += depth_of(part)
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


def _single(parts: list[Token]) -> Value:
    if not parts:
        raise UnreadableError("an answer is missing")
    if (words := words_of(parts)) is not None:
        return words
    if (residue := _residue(parts)) is not None:
        return residue
    terms, colons = split(parts, lambda part: ":" if part.text.strip() in (":", "to") else None)
    if colons and (
        len(terms) == 2 or all(part.text == ":" for part in parts if part.text in (":", " to "))
    ):
        if not all(terms):
            raise UnreadableError("a term of the ratio is missing")
        return RatioAnswer(tuple(formula(term) for term in terms))
    value = quantity_of(parts)
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
        if word in (r"\mod", r"\bmod", "mod") and start == place:
            raise OtherMeaningError("mod is an operation without its brackets")
        if word in (r"\pmod", r"\mod", r"\bmod", "mod") and start:
            modulus = [part for part in parts[place + 1 :] if part.text not in ("(", ")", "{", "}")]
            return ResidueAnswer(formula(parts[:start]), formula(modulus))
    return None
