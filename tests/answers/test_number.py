"""Numbers are read in the ways in which models write them."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    """Points, lists, equations and formulas are left to others."""
    assert number(text) is None


@given(st.integers())
def test_every_integer_is_read(value: int) -> None:
    """With and without separators."""
    for text in (str(value), f"{value:,}", f"0{value}" if value >= 0 else str(value)):
        read = number(text)
        assert read is not None
        assert read.value == value


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing raises."""
    number(text)
