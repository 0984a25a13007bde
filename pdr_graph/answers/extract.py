"""Finds the final answer that a solution states.

A box counts, or a line that says it is the answer. A bare last number does not: checkers that
accept one give credit to thoughts that were cut off. Of 400 GSM8K solutions cut before their answer
line, math-verify's defaults credit 391.

Everything here takes time linear in the text: a solution may be a million characters of anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from pdr_graph.answers.quantity import is_known as unit_is_known
from pdr_graph.answers.tokens import GREEK

LONGEST_ANSWER = 4000
"""In characters; a longer one is prose, or an attack."""
# Reading a box takes at most LONGEST_ANSWER steps.
_MOST_BOXES = 16
# In characters: an answer line stands near the end.
_TAIL = 100_000
_LONGEST_LINE = 400

_BOX_NAMES = ("\\boxed", "\\fbox", "\\framebox")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(\{)|(?<=\s)([^\s{}$\\.,;]+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
# A sign that belongs to the box; neither a subtraction nor the bullet of a list.
_SIGN = re.compile(
    r"(?: (?:^|[^\w)}\]\s]\s*|[a-z]{2}\s+) ([-−]|\\pm\s*) | [=($,][ ]* ([-−])\s+ )$", re.VERBOSE
)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&]|\\[()\[\]]|\\q?quad|\\ |and|or|\\(?:text|mbox|textrm)\s*\{\s*,?(?:and|or)\s*\})+"
)
_JOINS = re.compile(r"[,;]|and|or")

_ANSWER_IS = re.compile(
    r"""
    (?i:\banswer)\b[*_`}]*
    (?:\s+to\s[^.\n:]{1,80}?)?
    \s*(?: \b(?i:is|equals)\b | [:：=] )
    [*_`\s}]* (?:[:：][*_`\s}]*)?
    | ^[#*_ \t]{0,8} (?i:(?:final\s)?answer) [*_:]{0,4} [ \t]* \n \s*     # a heading of its own
    | ^\#{4} [ \t]*                                                # GSM8K
    | <answer>\s*
    | (?P<abroad> (?: 答案 | 答え | 正解 | 答 | 정답 | 답
        | (?i:\b(?:respuesta|réponse|antwort|ответ|risposta|resposta|odpowiedź)\b) )
      (?: \s (?: final | finale | correcta | correcte | correta ) )?
      [*_`}】\]]* \s? (?: (?<=】) | [:：=]
        | (?: 是 | 为 | 為 | は | 은 | 는 | (?i:es|est|ist|lautet|è|é)\b ) [:：]? )
      [*_`\s}]* )
    """,
    re.VERBOSE | re.MULTILINE,
)
# The same within an answer: \boxed{\text{Answer: } 9}.
_LABEL = re.compile(
    r"(?:\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{)?\s*(?i:the\s+)?(?i:final\s+)?(?i:answer)\s*\}?"
    r"\s*(?:[:：=]|(?i:is\b)\s*:?)[\s~]*\}?\s*"
    r"|(?:\\(?:text|mathrm)\s*\{)?\s*(?:最终)?(?:答案|答え|정답)\s*(?:[:：=]|是|为|為)\s*\}?\s*"
)
_NO_ANSWER = re.compile(
    r"(?i)(?:not|unknown|unclear|undetermined|unable|none of|whether|in|nicht|kein\w*|pas|не)\b"
    r"|不|\?|？|$"
)
_SENTENCE_END = re.compile(
    r"[.!?](?=\s|$|[*\"])|;(?!\s*[-+]?[\d$\\])|[\n。！？]|\*\*(?![\w({-])|</|<\|"
    r"|\s(?:because|since|I hope|where|which)\b"
)
# The end of a formula that began before the answer's word.
_FORMULA_END = re.compile(r"\\\]|\\\)|\$\$|\\\[|\\\(|\$")
_HEDGE = re.compile(r"(?i)^(?:(?:about|approximately|around|simply|therefore|thus|just)\s+)+")
_CURRENCY = re.compile(
    r"(?:\\?\$|([€£¥]))(\d[\d,]*(?:\.\d+)?)(?![\d$]|[^$\n]*\$)"
    r"(\s*(?:\\text\s*\{)?\s*(?:hundred|thousand|million|billion|trillion)s?\b)?"
)
_MATH = {"$$": "$$", "$": "$", "\\[": "\\]", "\\(": "\\)"}
_FORMULA = re.compile(
    r"\$\$[^$]{1,400}\$\$|\$[^$\n]{1,400}\$|\\\([^\n]{1,400}?\\\)|\\\[.{1,400}?\\\]", re.S
)
# The only formula of a sentence that ends with it.
_LAST_FORMULA = re.compile(r"^[^$\\]+ (\$[^$]+\$|\\\((?:(?!\\\)).)+\\\))$", re.S)
_NEXT_MATH = re.compile(r"\s*(?:,|,?\s*(?:and|or)\b)\s*(?=\$|\\\(|\\\[)")
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b|pct\b)")
_QUANTITY = re.compile(r"([-+−]?[$€£¥]?\s?\d[\d,]*(?:\.\d+)?(?:/\d+)?)\s+([A-Za-z][A-Za-z ]{1,40})")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words after a number that change it; all other words count as its unit.
_NOT_A_UNIT = _words(
    "pi sqrt sin cos tan log ln exp mod and or to times plus minus over by if for choose percent "
    "pct percentage hundred thousand million billion dozen"
)
# Words of sentences that speak about an answer and state none: "the answer is correct".
_PROSE = _words(
    "a an the we you it this that these those let let's to as by of with from there here am not do "
    "correct incorrect right wrong same given found shown written calculated computed obtained "
    "derived stated follows following above below therefore thus hence number python"
)
_FIGURES = re.compile(r"\d|\\|\$|^[(（]?[A-Z][)）]?(?![^\W_])")
_SAYS = re.compile(r"[^\W_]|[^\x00-\x7f]|\\")
_LAST_COMMAND = re.compile(r"\\([A-Za-z]*)$")
# Commands that a formula may end with: all others have an argument, or are cut.
_SYMBOLS = frozenset(
    [
        "pi",
        "infty",
        "emptyset",
        "varnothing",
        "circ",
        "degree",
        "rangle",
        "rfloor",
        "rceil",
        "ell",
        *"RZQNC",
        *GREEK,
    ]
)
# What follows a number in Japanese and Korean.
_COPULA = re.compile(r"\s*(?:です|である|だ|となる|입니다|이다|이에요)$")
_BULLET = re.compile(r"[-*•] +(?=\S)")
_NUMBERED = re.compile(r"\d{1,2}[.)] +\S")
# A placeholder of the prompt that the model repeated.
_PLACEHOLDER = re.compile(r"[\[{<(][A-Za-z][A-Za-z _]{2,}[\]}>)]")
_MOST_WORDS = 4


def final_answer(solution: str) -> str | None:
    """Return the answer that a solution states; None if it states none."""
    text = without_thought(solution)
    if text is None:
        return None
    return boxed_answer(text) or stated_answer(text)


def answer_in_text(text: str) -> str | None:
    """Return the answer that a text states, or its only formula; None if it has none or several."""
    if stated := final_answer(text):
        return stated
    formulas = list(islice(_FORMULA.finditer(text[:_TAIL]), 2))
    return tidy(formulas[0].group()) if len(formulas) == 1 else None


OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ReplyParts:
    """One reply, taken apart into thought and solution."""

    thought: str
    solution: str
    closed: bool
    """False where the reply ended inside its thought; it then has no solution."""


def split_text(text: str) -> ReplyParts:
    r"""Split a text at the tags of its thought.

    A template may open the thought in the prompt, so that a closing tag alone ends it.

    >>> split_text("<think>2 + 2</think>\nIt is 4.")
    ReplyParts(thought='2 + 2', solution='It is 4.', closed=True)
    """
    before, closing, after = text.rpartition(CLOSE)
    if closing and OPEN not in after:
        thought = before.strip().removeprefix(OPEN)
        return ReplyParts(thought.strip(), after.strip(), True)
    head, opening, rest = (after if closing else text).partition(OPEN)
    if opening:
        # Text before a thought that never ended is no solution: the model was not done.
        return ReplyParts(f"{before}{head}{rest}".strip(), "", False)
    return ReplyParts("", text.strip(), True)


def without_thought(text: str) -> str | None:
    """Return what follows the thinking; None if the thinking never ended."""
    parts = split_text(text)
    return parts.solution if parts.closed else None


def boxed_answer(text: str) -> str | None:
    """Return the content of the last box, with its sign; of boxes joined by "and", all contents."""
    contents: list[str] = []
    first = len(text)
    for start in _boxes_from_the_end(text):
        box = _read_box(text, start)
        if box is None or not (content := tidy(_unlabelled(box[0].strip()))):
            continue
        if contents:
            between = text[box[1] : first] if box[1] <= first <= box[1] + 60 else ""
            if not (_BETWEEN_BOXES.fullmatch(between) and _JOINS.search(between)):
                break
        sign = _SIGN.search(text, max(0, start - 12), start)
        contents.append((sign.group(sign.lastindex or 0).strip() if sign else "") + content)
        first = start
    return ", ".join(reversed(contents)) or None


def _unlabelled(text: str) -> str:
    r"""Remove the word of an answer: \\text{Answer: } 9, \\text{The answer is 6}."""
    label = _LABEL.match(text)
    if label is None:
        return text
    rest = text[label.end() :]
    closes = rest.count("}") - rest.count("\\}") > rest.count("{") - rest.count("\\{")
    return rest.rstrip().removesuffix("}") if closes else rest


def _boxes_from_the_end(text: str) -> Iterator[int]:
    places = {name: text.rfind(name) for name in _BOX_NAMES}
    for _ in range(_MOST_BOXES):
        name = max(places, key=lambda each: places[each])
        place = places[name]
        if place < 0:
            return
        yield place
        places[name] = text.rfind(name, 0, place)


def _read_box(text: str, start: int) -> tuple[str, int] | None:
    """Return content and end of the box that starts here; None if its brace does not close."""
    opening = _BOX.match(text, start, start + 100)
    if opening is None:
        return None
    if opening.group(2):
        return opening.group(2), opening.end()
    depth = 1
    for mark in _BRACE.finditer(text, opening.end(), opening.end() + LONGEST_ANSWER):
        if mark.group() == "{":
            depth += 1
        elif mark.group() == "}":
            depth -= 1
            if depth == 0:
                return text[opening.end() : mark.start()], mark.end()
    return None


def stated_answer(text: str) -> str | None:
    """Return what the last line of the kind "The answer is 42." states."""
    tail = text[-_TAIL:]
    for lead in reversed(list(_ANSWER_IS.finditer(tail))):
        rest = tail[lead.end() : lead.end() + _LONGEST_LINE]
        if tail[: lead.end()].endswith("\n"):
            rest = _BULLET.sub("", rest, count=1)
            if _NUMBERED.match(rest):
                continue  # the first of several steps
        rest = _within_formula(rest, tail[max(0, lead.start() - _LONGEST_LINE) : lead.start()])
        if _PLACEHOLDER.match(rest) or lead.group().endswith("```"):
            continue
        rest = rest.lstrip("*_`: ")
        if lead["abroad"] and not _FIGURES.search(rest.split("\n")[0]):
            continue  # words of other languages that say nothing: "la respuesta es la siguiente"
        if not _NO_ANSWER.match(rest) and (answer := _read_statement(rest)):
            # A whole box would have been found before; this one is empty or cut.
            answer = _unlabelled_end(answer)
            if answer.startswith(_BOX_NAMES) or _is_cut(answer):
                return None
            return _COPULA.sub("", answer) if lead["abroad"] else answer
    return None


def _unlabelled_end(answer: str) -> str:
    r"""Remove the brace that closes \\text{Answer: C}."""
    closes = answer.count("}") - answer.count("\\}") == answer.count("{") - answer.count("\\{") + 1
    return answer.removesuffix("}") if closes else answer


def _within_formula(rest: str, before: str) -> str:
    r"""Cut a statement at the end of the formula that contains its word: \[\text{Answer: } 9\]."""
    before = before.rpartition("\n\n")[2]
    end = _FORMULA_END.search(rest)
    if end is None or end.group() in ("\\[", "\\("):
        return rest
    if end.group() in ("\\]", "\\)"):
        return rest[: end.start()]
    open_dollars = before.replace("\\$", "").count("$") % (4 if end.group() == "$$" else 2)
    return rest[: end.start()] if open_dollars else rest


def _read_statement(rest: str) -> str | None:
    if money := _CURRENCY.match(rest):
        scale = (money[3] or "").replace("\\text", "").replace("{", "")
        return f"{money[1] or ''}{money[2]}{scale}"
    if rest.startswith(tuple(_MATH)):
        return _read_math(rest)
    end = _SENTENCE_END.search(rest)
    if end and end.group() in ("?", "？"):
        return None
    sentence = tidy(_HEDGE.sub("", tidy(rest[: end.start()] if end else rest)))
    before, said, after = sentence.rpartition(" is ")
    if said and before:
        return _read_statement(after)
    quantity = _QUANTITY.fullmatch(sentence)
    if quantity and not _NOT_A_UNIT.intersection(quantity.group(2).lower().split()):
        # A unit is kept, since it may differ from the gold answer's. A counted noun is left out.
        measured = unit_is_known(quantity.group(2).split()[0])
        return sentence if measured else quantity.group(1).lstrip("$ ")
    if formula := _LAST_FORMULA.search(sentence):
        return tidy(formula.group(1))
    # A capital alone is the letter of an option.
    words = [each.lower() if len(each) > 1 else each for each in sentence.split()]
    if len(words) == 2 and words[0] == "right":
        words = words[1:]  # a right angle
    if not any(c.isdigit() or c in "\\$" for c in sentence) and (
        len(words) > _MOST_WORDS or _PROSE.intersection(words)
    ):
        return None
    return sentence if sentence and len(sentence) <= 200 else None


def _read_math(rest: str) -> str | None:
    """Return the formula that the text starts with; of formulas joined by "and", all formulas."""
    parts: list[str] = []
    place = 0
    while opening := next((o for o in _MATH if rest.startswith(o, place)), None):
        end = _find_closing(rest, _MATH[opening], place + len(opening))
        if end < 0 or rest.endswith((" and ", " or "), place, end):  # "$5 and $7" are amounts
            break
        part, place = tidy(rest[place + len(opening) : end]), end + len(_MATH[opening])
        if percent := _PERCENT.match(rest, place):
            part, place = part + "\\%", percent.end()
        parts.append(part)
        if not (joint := _NEXT_MATH.match(rest, place)):
            break
        place = joint.end()
    return ", ".join(filter(None, parts)) or None


def _find_closing(text: str, closing: str, start: int) -> int:
    r"""Return where a formula ends, past the dollar in `$\$18.90$`; -1 if it does not end."""
    end = text.find(closing, start)
    while end > 0 and text[end - 1] == "\\":
        end = text.find(closing, end + 1)
    return end


_SPACE_COMMANDS = ("\\;", "\\,", "\\:", "\\!", "\\ ")


def tidy(text: str) -> str:
    """Remove space, markup and punctuation around an answer."""
    text = text.strip().strip("*`").strip()
    while text.endswith(_SPACE_COMMANDS):
        text = text[:-2].rstrip()
    for opening, closing in _MATH.items():
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner:
                text = inner.strip()
    return text.rstrip(".,;:。，；").rstrip()


def _is_cut(answer: str) -> bool:
    """Tell whether a formula ends in its middle."""
    last = _LAST_COMMAND.search(answer)
    return (
        not _SAYS.search(answer)
        or (last is not None and last[1] not in _SYMBOLS)
        or (answer.count("{") - answer.count("\\{") > answer.count("}") - answer.count("\\}"))
    )
