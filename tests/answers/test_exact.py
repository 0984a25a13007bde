"""Numbers are read as models write them; answers that need no algebra are compared at once."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.answers import exact
from pdr_graph.answers.exact import number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("025", 25),
        ("25.0", 25),
        ("-7", -7),
        ("−7", -7),
        ("２５", 25),
        ("1,000", 1000),
        ("1{,}000", 1000),
        (r"1\,000", 1000),
        (r"32,\! 349", 32349),
        ("1 000", 1000),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\dfrac{3}{4}", Fraction(3, 4)),
        (r"-\frac34", Fraction(-3, 4)),
        ("1 1/4", Fraction(5, 4)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"$\text{13}$", 13),
        (r"25^\circ", 25),
        (r"28\%", 28),
        (r"\$70,000", 70000),
        ("x = 25", 25),
        (r"\approx 25", 25),
        (r"504\pmod{1000}", 504),
        (r"\textbf{(B)}\ 25", 25),
    ],
)
def test_spellings_of_a_number(text: str, value: Fraction | int) -> None:
    """Its value is exact."""
    read = number(text)
    assert read is not None
    assert read.value == value


@pytest.mark.parametrize(
    "text", ["", "x", "1, 2", "(32,349)", "2a = 5", "1/0", "5!", "10^3", r"2\sqrt{3}", "1.2.3", "²"]
)
def test_what_is_no_number(text: str) -> None:
    """Points, lists, equations and formulas are not numbers."""
    assert number(text) is None


@given(st.integers())
def test_every_integer_is_read(value: int) -> None:
    """With and without separators."""
    for text in (str(value), f"{value:,}", f"0{value}" if value >= 0 else str(value)):
        read = number(text)
        assert read is not None
        assert read.value == value


@given(st.text())
def test_any_text_is_read_as_a_number_or_refused(text: str) -> None:
    """Nothing raises."""
    number(text)


_MARKUP = [
    "{",
    "}",
    "(",
    ")",
    ",",
    "\\frac",
    "\\text{",
    "1",
    "2",
    ".",
    " ",
    "x",
    "=",
    "-",
    "%",
    "$",
]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("25", "025"),
        ("25", "25.0"),
        ("1000", r"1\,000"),
        ("5/4", "1 1/4"),
        ("1/3", "0.333333"),
        ("28", r"28\%"),
        ("0.28", "28%"),
        ("(1,2)", "(1, 2.0)"),
        ("1 and 2", "2, 1"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        (r"x \geq 5", "x >= 5"),
        (r"\dfrac{\pi}{2}", r"\frac{\pi}{2}"),
        ("Evelyn", r"\text{evelyn}"),
        ("x = 1, y = 2", "x=1, y=2"),
    ],
)
def test_equal(left: str, right: str) -> None:
    """One answer in two spellings."""
    assert exact.equal(left, right) is True


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("25", "26"),
        ("1/3", "0.333"),
        ("0.000000001", "0.000000002"),
        ("2 2/3", "2"),
        ("25^\\circ", "25\\%"),
        ("0.5", "0.5%"),
        ("\\$27", "€27"),
        (r"\textbf{(C)}\ 25", r"\textbf{(D)}\ 25"),
        ("listen", "silent"),
        (r"1:2:3:\ldots", r"1:4:9:\ldots"),
        ("1" * 1_000_000, "2" * 1_000_000),
    ],
)
def test_unequal(left: str, right: str) -> None:
    """Some of these math-verify would call equal, or never finish."""
    assert exact.equal(left, right) is False


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("32349", "32, 349"),
        ("32349", "(32,349)"),
        ("x = 1, y = 2", "x = 2, y = 1"),
        ("x = 1", "y = 1"),
        ("(1,2)", "(2,1)"),
        ("x+1", "1+x"),
        ("10^3", "1000"),
        ("1.2", "1,2"),
        ("32,349", "32, 349"),
        ("1, 1, 2", "1, 2, 2"),
        ("x<1 or x>2", "x<1 and x>2"),
        ("x=1 or y=2", "x=1 and y=2"),
        ("12", r"12 \pmod 7"),
        ("no solution", "empty set"),
    ],
)
def test_undecided(left: str, right: str) -> None:
    """These need algebra."""
    assert exact.equal(left, right) is None


_ANSWERS = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.fractions().map(str),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.lists(st.sampled_from(_MARKUP), max_size=25).map("".join),
)


@given(_ANSWERS)
def test_an_answer_equals_itself(answer: str) -> None:
    """Only the empty answer does not."""
    assert exact.equal(answer, answer) is bool(answer)


@given(_ANSWERS, _ANSWERS)
def test_order_does_not_matter(left: str, right: str) -> None:
    """Neither is the gold answer here."""
    assert exact.equal(left, right) == exact.equal(right, left)


@given(st.integers(), st.integers())
def test_integers_are_equal_as_integers(left: int, right: int) -> None:
    """Integers are decided exactly."""
    assert exact.equal(str(left), f"{right:,}") is (left == right)


def test_a_set_of_sets_is_no_trap() -> None:
    """Sets are compared each with each, but not at every depth."""
    sets = ["{" * 90 + "1" + "".join(f",{i}}}" for i in range(k, k + 90)) for k in (0, 1)]
    start = time.process_time()
    exact.equal(*sets)
    assert time.process_time() - start < 0.1
