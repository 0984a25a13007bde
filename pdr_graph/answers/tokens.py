r"""Takes an answer apart, in LaTeX or plain text: numbers, names, words, commands and signs.

Characters that are no ASCII are spelled as LaTeX first: x² is x^{2}, ½ is one half. Splitting at
signs outside of brackets is here as well. All of it is linear in the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

LONGEST_EXPRESSION = 1500
"""In characters; a longer one is not read."""


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


class UnreadableError(ValueError):
    """The text is no mathematics that is understood; the message says why."""


class OtherMeaningError(UnreadableError):
    """The text is understood to mean something else than a number in it."""


class Token(NamedTuple):
    """A piece of an answer."""

    kind: str
    """`number`, `letters`, `words` (of LaTeX's text), `command` or `symbol`."""
    text: str
    spaced: bool = False
    """Whether there is space before it."""


# As programs write them: 1.5e3, 1e-5.
_NUMBER = (
    r"[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(?:\.\d+)?"
    r"|(?:\d*\.\d+[eE][-+]?\d+|\d+[eE](?:-?\d+|\+\d\d+))(?![\w.])"
    r"|\d+\.?\d*|\.\d+"
)


_TOKEN = re.compile(
    rf"""
    (?P<number>{_NUMBER})
    | (?P<words>\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mathrm|mathsf|mbox|hbox|operatorname\*?)
        \s*\{{(?P<inner>(?:[^{{}}]|\{{[^{{}}]*\}})*)\}})
    | (?P<command>\\(?:[A-Za-z]+|.))
    | (?P<letters>[A-Za-z]+)
    | (?P<foreign>[^\W\d_]+)
    | (?P<symbol>\*\*|<=|>=|!=|.)
    """,
    re.VERBOSE | re.DOTALL,
)


_SPACE = re.compile(
    r"(?:\s|~|\\[,:;!>\s]|\\q?quad(?![A-Za-z])|\\hspace\{[^{}]*\}|\\phantom\{[^{}]*\})+"
)


SPACES = re.compile(r"(?:\s|~|\\[,:;!\s]|\\q?quad(?![A-Za-z]))+")
_NUMBER_SET = re.compile(
    r"\\(?:mathbf|mathbb|Bbb)\s*\{?([RZQNC])(?![A-Za-z])\}?|\\([RZQNC])(?![A-Za-z])"
)
_SILENT = re.compile(
    r"\\(?:text)?color\s*\{\w+\}|\\(?:underline|mathbf|mathit|boldsymbol|bm|bf|rm|it)(?![A-Za-z])"
    r"|\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![A-Za-z])\.?"
)


_SYMBOLS = {
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "•": r"\cdot ", "∗": "*",
    "÷": r"\div ", "−": "-", "–": "-", "—": "-", "∕": "/", "⁄": "/", "√": r"\sqrt ",
    "∛": r"\sqrt[3] ", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
    "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∈": r"\in ", "∪": r"\cup ",
    "∩": r"\cap ", "∅": r"\emptyset ", "ø": r"\emptyset ", "Ø": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ",
    "º": r"^\circ ", "′": "'", "’": "'", "“": '"', "”": '"', "…": r"\ldots ", "⋯": r"\ldots ",
    "∖": r"\setminus ", "∣": "|", "∧": r"\land ", "∨": r"\lor ", "→": r"\to ", "⟨": r"\langle ",
    "⟩": r"\rangle ", "，": ", ", "；": "; ", "：": ":",
    "．": ".", "。": ".", "、": ", ", "（": "(",
    "）": ")", "［": "[", "］": "]", "｛": r"\{",
    "｝": r"\}", "＝": "=", "＋": "+", "－": "-", "／": "/",
    "％": "%", "＜": "<", "＞": ">", "＾": "^", "¢": r"\cent ", "\u200b": "", "\ufeff": "",
}  # fmt: skip


GREEK = word_set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi "
    "rho varrho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma "
    "Upsilon Phi Psi Omega"
)
"""Letters by their names."""


_GREEK_SIGNS = "αβγδεζηθικλμνξρστυφχψωΓΔΘΛΞΣΥΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega"
)
_SYMBOLS |= {
    sign: f"\\{name} " for sign, name in zip(_GREEK_SIGNS, _GREEK_NAMES.split(), strict=True)
}
_ELEMENTARY = word_set(
    "sin cos tan cot sec csc sinh cosh tanh coth ln lg log exp arcsin arccos arctan arccot arcsec"
)
# Their spelling without a backslash, or another one.
FUNCTIONS = {name: name for name in _ELEMENTARY} | {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot",
    "arctg": "arctan", "cosec": "csc", "sqrt": "sqrt", "cbrt": "cbrt", "abs": "abs",
    "floor": "floor", "ceil": "ceil", "gcd": "gcd", "lcm": "lcm",
    "max": "max", "min": "min", "Re": "re", "Im": "im", "deg": "deg", "sgn": "sgn", "sign": "sgn",
    "binom": "binom",
}  # fmt: skip


CLOSERS = {
    "(": ")", "[": "]", "{": "}", r"\{": r"\}", r"\lbrace": r"\rbrace", r"\langle": r"\rangle",
    r"\lfloor": r"\rfloor", r"\lceil": r"\rceil", r"\lvert": r"\rvert", "|": "|",
    r"\vert": r"\vert",
}  # fmt: skip
"""The closing bracket of each opening one."""


OPENING = frozenset(CLOSERS) - {"|", r"\vert"}


CLOSING = frozenset(CLOSERS.values()) - {"|", r"\vert"}


def _spelled(character: str) -> str:
    """Return a character that is no ASCII as LaTeX; itself if it has no such spelling."""
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    kind, _, parts = unicodedata.decomposition(character).partition(" ")
    codes = "".join(chr(int(code, 16)) for code in parts.split()) if kind.startswith("<") else ""
    if kind == "<super>" and re.fullmatch(r"[\d+\-−n()]", codes):
        return f"^{{{codes}}}".replace("−", "-")
    if kind == "<sub>" and re.fullmatch(r"[\w+\-−]", codes):
        return f"_{{{codes}}}".replace("−", "-")
    if kind == "<fraction>" and (found := re.fullmatch(r"(\d+)⁄(\d+)", codes)):
        return f"\\frac{{{found[1]}}}{{{found[2]}}}"
    if kind in ("<wide>", "<compat>", "<noBreak>", "<font>") and codes.isascii():
        return codes
    return character


_SCRIPTS = re.compile(r"\}\^\{|\}_\{")


def ascii_math(text: str) -> str:
    """Spell what is not ASCII as LaTeX: x² is x^{2}, ½ is one half, √ is a root."""
    if text.isascii():
        return text
    return _SCRIPTS.sub("", "".join(c if c.isascii() else _spelled(c) for c in text))


def tokens(text: str) -> list[Token]:
    """Take a text apart; a comma between digits separates within brackets, as in (32,349)."""
    if len(text) > LONGEST_EXPRESSION:
        raise UnreadableError("too long to be an expression")
    text = _SILENT.sub("", _NUMBER_SET.sub(r"\\mathbb{\1\2}", ascii_math(text)))
    if len(text) > 4 * LONGEST_EXPRESSION:
        raise UnreadableError("too many characters that are no ASCII")
    text = text.replace("{,}", ",").replace("\\!", "").replace("+/-", r"\pm ")
    found: list[Token] = []
    place, depth = 0, 0
    while place < len(text):
        space = _SPACE.match(text, place)
        if space:
            place = space.end()
            if place == len(text):
                break
        mark = _TOKEN.match(text, place)
        assert mark is not None  # any character is a symbol
        kind, piece = mark.lastgroup or "symbol", mark.group()
        if mark["words"] is not None:
            kind, piece = "words", mark["inner"]
        elif kind == "foreign":
            kind = "words"
        elif kind == "number" and depth and "," in piece:
            piece = piece[: piece.index(",")]
            mark = None
        place = mark.end() if mark else place + len(piece)
        if piece in OPENING and piece != "{":
            depth += 1
        elif piece in CLOSING and piece != "}":
            depth -= 1
        if _joins(found, kind, piece, spaced=space is not None, rest=text[place : place + 1]):
            found[-1] = found[-1]._replace(text=found[-1].text + piece)
            continue
        if kind == "words" and (stripped := piece.strip()) in _RUNS:
            kind, piece = "letters", stripped
        found.append(Token(kind, piece, space is not None))
        # The letter x is a cross in 1.6 x 10^{-19}.
        if piece == "^" and [each.text for each in found[-3:-1]] == ["x", "10"]:
            found[-3] = Token("command", r"\times", found[-3].spaced)
    return found


def _joins(found: list[Token], kind: str, piece: str, *, spaced: bool, rest: str) -> bool:
    r"""Tell whether these are the next three digits of a number, as in 1\,000 or 1 000."""
    return (
        kind == "number"
        and spaced
        and rest != "/"
        and re.fullmatch(r"\d{3}(?:\.\d+)?", piece) is not None
        and bool(found)
        and re.fullmatch(r"[1-9]\d{0,2}(?:\d{3})*", found[-1].text) is not None
        and found[-1].kind == "number"
        and (len(found) == 1 or found[-2].text not in ("^", "_"))
    )


# Upright letters that are mathematics, as in \mathrm{e} and \text{max}.
_RUNS = _ELEMENTARY | word_set("e i d max min gcd lcm")


def text_of(parts: Sequence[Token]) -> str:
    """Return pieces as they were written, without LaTeX's text boxes."""
    return "".join((" " if part.spaced else "") + part.text for part in parts).strip()


def depth_of(part: Token) -> int:
    """Return 1 for an opening bracket, -1 for a closing one, 0 for all else."""
    if part.kind in ("words", "letters", "number"):
        return 0
    return (part.text in OPENING) - (part.text in CLOSING)


def unreversed(parts: list[Token]) -> list[Token]:
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
        if depth == 0 and depth_of(part) > 0:
            opened = place
        depth += depth_of(part)
        found.append(part)
    return found


def split(
    parts: Sequence[Token], separator: Callable[[Token], str | None]
) -> tuple[list[list[Token]], list[str]]:
    """Split at separators outside of brackets, and return the pieces and the separators."""
    pieces: list[list[Token]] = [[]]
    found: list[str] = []
    depth = 0
    for part in parts:
        depth += depth_of(part)
        name = separator(part) if depth == 0 else None
        if name is None:
            pieces[-1].append(part)
        else:
            found.append(name)
            pieces.append([])
    if depth:
        raise UnreadableError("a bracket does not close")
    return pieces, found
