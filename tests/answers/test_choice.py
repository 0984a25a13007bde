"""The letter of an option is found in a box or an answer line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.answers import ChoiceAnswers


@pytest.mark.parametrize(
    ("solution", "letter"),
    [
        (r"\boxed{B}", "B"),
        (r"\boxed{(B)}", "B"),
        (r"\boxed{b}", "B"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{\textbf{(B)}\ 25}", "B"),
        ("The answer is (B)", "B"),
        ("The correct answer is option C.", "C"),
        ("Answer: B) 12", "B"),
        ("**Answer: (J)**", "J"),
        (r"\boxed{25}, so the answer is (D).", "D"),
        (r"\boxed{25}", None),
        (r"\boxed{A, B}", None),
        ("The answer is A or B.", None),
        ("The answer is A car.", None),
        ("The answer is K.", None),
        ("B", None),
        (r"<think>\boxed{B}", None),
    ],
)
def test_letter(solution: str, letter: str | None) -> None:
    """One of A to J, and only one."""
    assert ChoiceAnswers().extract(solution) == letter


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    """Nothing raises."""
    ChoiceAnswers().extract(text)
