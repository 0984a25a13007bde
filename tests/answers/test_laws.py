"""What holds for every answer: equality is reflexive and exact; a cut solution gains nothing."""

from fractions import Fraction

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from pdr_graph.answers import Checker
from pdr_graph.answers.extract import final_answer
from tests.answers.pairs import PAIRS, SOLUTIONS

few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The checker is shared by all examples on purpose; many of them need its worker."""

rationals = st.builds(Fraction, st.integers(-999, 999), st.integers(2, 99))


def _spellings(value: Fraction) -> list[str]:
    """Write a number in every way that keeps its value."""
    sign, above, below = "-" if value < 0 else "", abs(value.numerator), value.denominator
    whole, rest = divmod(above, below)
    found = [
        f"{sign}{above}/{below}",
        f"{sign}\\frac{{{above}}}{{{below}}}",
        f"\\dfrac{{{value.numerator}}}{{{below}}}",
        f"{sign}({above})/({below})",
        f"{sign}\\frac{{{3 * above}}}{{{3 * below}}}",
        f"x = {sign}{above}/{below}",
        f"{sign}{_repeating(value)}",
    ]
    if whole and rest:
        found += [f"{sign}{whole}\\frac{{{rest}}}{{{below}}}", f"{sign}{whole} {rest}/{below}"]
    return found


def _repeating(value: Fraction) -> str:
    r"""Write the size of a number with all its decimals: 0.1\overline{6}."""
    whole, rest = divmod(abs(value.numerator), value.denominator)
    seen: dict[int, int] = {}
    digits = ""
    while rest and rest not in seen:
        seen[rest] = len(digits)
        digit, rest = divmod(rest * 10, value.denominator)
        digits += str(digit)
    if rest:
        digits = f"{digits[: seen[rest]]}\\overline{{{digits[seen[rest] :]}}}"
    return f"{whole}.{digits}" if digits else str(whole)


def _polynomial(coefficients: dict[str, int]) -> str:
    """Write a sum of terms, in the order of the keys."""
    text = "".join(f"{value:+d}{name}" for name, value in coefficients.items() if value)
    return text.removeprefix("+") or "0"


async def test_every_answer_equals_itself(checker: Checker) -> None:
    """Also where no rule reads it."""
    answers = {pair.gold for pair in PAIRS} | {pair.answer for pair in PAIRS}
    refused = [
        answer
        for answer in sorted(answers)
        if not (await checker.check(answer, f"\\boxed{{{answer}}}")).correct
        or not await checker.same(answer, answer)
    ]
    assert refused == []


@few
@given(value=rationals, data=st.data())
async def test_a_number_equals_its_spellings(
    checker: Checker, value: Fraction, data: st.DataObject
) -> None:
    """Whichever of them is gold."""
    spellings = st.sampled_from(_spellings(value))
    gold, answer = data.draw(spellings), data.draw(spellings)
    assert (await checker.check(gold, f"\\boxed{{{answer}}}")).correct
    assert await checker.same(gold, answer)


@few
@given(value=rationals, other=rationals, data=st.data())
async def test_a_number_equals_no_other(
    checker: Checker, value: Fraction, other: Fraction, data: st.DataObject
) -> None:
    """However both are written."""
    assume(value != other)
    gold = data.draw(st.sampled_from(_spellings(value)))
    answer = data.draw(st.sampled_from(_spellings(other)))
    assert not (await checker.check(gold, f"\\boxed{{{answer}}}")).correct
    assert not await checker.same(gold, answer)


_MONOMIALS = ["x^3", "x^2y", "xy", "y^2", "m", "c", "t", "\\alpha", ""]


@few
@given(
    coefficients=st.dictionaries(
        st.sampled_from(_MONOMIALS), st.integers(2, 20), min_size=2, max_size=5
    ),
    data=st.data(),
)
async def test_a_polynomial_has_no_order(
    checker: Checker, coefficients: dict[str, int], data: st.DataObject
) -> None:
    """Its terms may be shuffled, and none of its coefficients may be changed."""
    gold = _polynomial(coefficients)
    names = data.draw(st.permutations(list(coefficients)))
    shuffled = {name: coefficients[name] for name in names}
    assert await checker.same(gold, _polynomial(shuffled))
    changed = shuffled | {names[0]: shuffled[names[0]] + data.draw(st.sampled_from([-1, 1, 5]))}
    assert not await checker.same(gold, _polynomial(changed))
    dropped = {name: shuffled[name] for name in names[1:]}
    assert not await checker.same(gold, _polynomial(dropped))


@few
@given(
    names=st.lists(st.sampled_from("abcdhkmnprtuvwxyzHMQ"), min_size=2, max_size=2, unique=True),
    shift=st.integers(-60, 60),
)
async def test_an_absolute_value_is_not_what_it_contains(
    checker: Checker, names: list[str], shift: int
) -> None:
    """A number that may have either sign differs from its absolute value, whatever its names."""
    first, second = names
    for inner in (f"{first}{shift:+d}", f"{first}-{second}", f"{first}{second}{shift:+d}"):
        assert not await checker.same(f"|{inner}|", inner)
        assert not await checker.same(f"\\sqrt{{({inner})^2}}", f"-({inner})")


@few
@given(word=st.text(st.sampled_from("ABCDHTRL"), min_size=3, max_size=8), data=st.data())
async def test_a_word_has_an_order(checker: Checker, word: str, data: st.DataObject) -> None:
    """Its letters in another order are another word, bare or as text."""
    other = "".join(data.draw(st.permutations(word)))
    assume(other != word)
    form = data.draw(st.sampled_from(["{}", "\\text{{{}}}", "\\mathrm{{{}}}"]))
    assert not await checker.same(word, form.format(other))
    assert await checker.same(word, form.format(word))


@few
@given(
    values=st.lists(st.integers(-9, 9), min_size=2, max_size=4, unique=True),
    data=st.data(),
)
async def test_assignments_go_by_name(
    checker: Checker, values: list[int], data: st.DataObject
) -> None:
    """They may be shuffled with their names, and not without."""
    pairs = list(zip("abcd", values, strict=False))
    gold = ", ".join(f"{name}={value}" for name, value in pairs)
    shuffled = ", ".join(f"{name}={value}" for name, value in data.draw(st.permutations(pairs)))
    assert await checker.same(gold, shuffled)
    others = data.draw(st.permutations(values))
    assume(others != values)
    swapped = ", ".join(f"{name}={value}" for (name, _), value in zip(pairs, others, strict=True))
    assert not await checker.same(gold, swapped)
    assert not await checker.same(gold, ", ".join(map(str, others)))


@few
@given(
    ends=st.lists(st.integers(-20, 20), min_size=2, max_size=2, unique=True).map(sorted),
    closed=st.tuples(st.booleans(), st.booleans()),
    data=st.data(),
)
async def test_an_interval_is_its_inequality(
    checker: Checker, ends: list[int], closed: tuple[bool, bool], data: st.DataObject
) -> None:
    """The same ends, open or closed alike, are equal; one end changed is not."""

    def interval(low: int, high: int, left: bool, right: bool) -> str:
        return f"{'[' if left else '('}{low},{high}{']' if right else ')'}"

    low, high = ends
    left, right = closed
    signs = {True: "\\le ", False: "<"}
    chain = f"{low}{signs[left]}x{signs[right]}{high}"
    gold = interval(low, high, left, right)
    assert await checker.same(gold, chain)
    other = data.draw(
        st.sampled_from(
            [
                interval(low, high, not left, right),
                interval(low, high, left, not right),
                interval(low - 1, high, left, right),
                interval(low, high + 1, left, right),
            ]
        )
    )
    assert not await checker.same(other, chain)
    assert not (await checker.check(chain, f"\\boxed{{{other}}}")).correct


@few
@given(
    digits=st.text(st.sampled_from("01"), min_size=2, max_size=8).filter(lambda t: t[0] == "1"),
    bases=st.lists(st.integers(2, 16), min_size=2, max_size=2, unique=True),
)
async def test_a_numeral_has_its_base(checker: Checker, digits: str, bases: list[int]) -> None:
    """The same digits in another base are another number."""
    first, second = bases
    assert not await checker.same(f"{digits}_{{{first}}}", f"{digits}_{{{second}}}")
    assert await checker.same(f"{digits}_{{{first}}}", f"({digits})_{{{first}}}")


_LENGTHS = {"mm": 1, "cm": 10, "m": 1000, "km": 1_000_000}


@few
@given(
    number=st.integers(1, 99),
    first=st.sampled_from(list(_LENGTHS)),
    second=st.sampled_from(list(_LENGTHS)),
)
async def test_a_unit_changes_a_number(
    checker: Checker, number: int, first: str, second: str
) -> None:
    """The same number in another unit is another length; converted, it is the same."""
    gold = f"{number} \\text{{ {first}}}"
    assert await checker.same(gold, f"{number} \\text{{ {second}}}") == (first == second)
    converted = Fraction(number * _LENGTHS[first], _LENGTHS[second])
    assert await checker.same(
        gold, f"\\frac{{{converted.numerator}}}{{{converted.denominator}}} \\text{{ {second}}}"
    )
    assert not await checker.same(gold, f"{number} \\text{{ {first}}}^2")


def test_a_cut_solution_gains_no_answer() -> None:
    """Up to the first figure of its answer, a solution gains no number from what stands before."""
    for pair in SOLUTIONS:
        start = next((i for i, c in enumerate(pair.solution) if c.isdigit()), len(pair.solution))
        for end in range(start + 1):
            answer = final_answer("So far x = 25. " + pair.solution[:end]) or ""
            assert not any(c.isdigit() for c in answer), pair.solution[:end]


_MARKS = (
    r"\frac \sqrt \text \pm \ne \le \cup \{ \} \left( \infty \sin ^\circ \% \$ \overline \pmod "
    r"\begin{pmatrix} \mathbb{R} { } ( ) [ ] ^ _ + - * / = < > ! | & : ; , . ' 0 1 2 9 e x ² ½ "
    "√ ∞ m km or and PM million 1e .. March"
)
_PIECES = st.sampled_from(_MARKS.split())


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(gold=[r"x\ne1"], answer=[r"x\ne\pm1"])
@example(gold=["1"], answer=[r"\frac", ".", "2"])
@example(gold=["1"], answer=[r"\sinh(\sinh t)"])
@given(gold=st.lists(_PIECES, max_size=8), answer=st.lists(_PIECES, min_size=1, max_size=8))
async def test_no_answer_raises(checker: Checker, gold: list[str], answer: list[str]) -> None:
    """What cannot be read gets a verdict, and is the same only as itself."""
    left, right = "".join(gold), "".join(answer)
    await checker.check(left, right, mode="raw")
    await checker.same(left, right)


@pytest.mark.parametrize(("gold", "answer"), [("0=0", "0=00"), ("0=0", "1=1")])
async def test_equations_that_always_hold_raise_nothing(
    checker: Checker, gold: str, answer: str
) -> None:
    """They say nothing, and still get a verdict."""
    await checker.check(gold, f"\\boxed{{{answer}}}")
    await checker.same(gold, answer)
