"""The estimate of token counts errs on the side of too many."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from pdr_graph.llm.tokens import estimate_tokens
from tests.fakes import odd_texts, write_tokenizer

PROSE = {
    "story": (
        "The old man walked down to the harbour every morning, before the boats came in. He said "
        "nothing to anyone, and nobody asked him why he was there; it had been like that for years."
    ),
    "solution": (
        "Let n be the number of apples. Since each of the 12 boxes holds 7 apples, we get "
        "n = 12 * 7 = 84. Taking away the 15 that were eaten leaves 84 - 15 = 69.\n\n"
        "The answer is \\boxed{69}."
    ),
    "notes": (
        "- The attempts agree that the sum is even.\n- They differ in the last step: one of them "
        "divides by two, the other does not.\n- What is still open: the case where k is odd.\n"
    ),
    "code": (
        "def total(values):\n    result = 0\n    for value in values:\n        if value % 3 == 0:\n"
        "            result += value ** 2\n    return result\n"
    ),
    "headings": "# First Part\n\n## The Second Step\n\nWe Try Again, With Fewer Words This Time.\n",
    "numbers": "1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024; 3.14159; 10,000; 2/3; 50%; 7 x 6",
    "Chinese": "答案是四十二。因为六乘七等于四十二。",
    "emoji": "So the answer is 42 😀👍 as we said",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """A byte-level tokenizer of six thousand tokens, an order smaller than a model's."""
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    write_tokenizer(file)
    return Tokenizer.from_file(str(file))


@pytest.mark.parametrize("kind", sorted(PROSE))
def test_the_estimate_is_an_upper_bound_on_what_people_write(tokenizer, kind):
    """A real tokenizer, and a small one at that, makes no more tokens than we charge."""
    tokens = len(tokenizer.encode(PROSE[kind], add_special_tokens=False).ids)
    assert estimate_tokens(PROSE[kind]) >= tokens


@pytest.mark.parametrize("kind", ["story", "notes"])
def test_the_estimate_is_not_far_above_plain_english(tokenizer, kind):
    """A workspace measured by it is less than half wasted."""
    tokens = len(tokenizer.encode(PROSE[kind], add_special_tokens=False).ids)
    assert estimate_tokens(PROSE[kind]) < 2 * tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("cat", 1),
        ("cats", 2),
        ("a b", 2),
        ("a     b", 3),
        ("2024", 4),
        ("x=1;", 4),
        ("\n\n", 2),
        ("CamelCase", 5),
        ("é", 2),
        ("😀", 4),
        ("\ud800", 3),
    ],
)
def test_what_each_kind_of_piece_costs(text, tokens):
    """Three letters, a digit, a mark, a line break, four more spaces, a byte beyond ASCII."""
    assert estimate_tokens(text) == tokens


@given(left=odd_texts, right=odd_texts)
def test_a_text_costs_no_more_than_its_parts(left, right):
    """Joining two texts merges at most a piece at the seam, so shares can be added up."""
    whole = estimate_tokens(left + right)
    assert whole <= estimate_tokens(left) + estimate_tokens(right) + 1
    assert whole >= max(estimate_tokens(left), estimate_tokens(right))


@given(text=st.text(st.characters(min_codepoint=128, exclude_categories=["Cs"])))
def test_beyond_ascii_every_byte_is_charged(text):
    """A byte-level tokenizer that never saw the script spends a token on each byte."""
    assert estimate_tokens(text) == len(text.encode())


@given(text=odd_texts)
def test_only_single_spaces_are_free(text):
    """Nothing that a model writes counts as nothing, but for a space that belongs to its word."""
    assert estimate_tokens(text) > 0 or not text.strip(" ")


def test_long_runs_of_spaces_are_charged():
    """A million spaces are no empty text."""
    assert estimate_tokens(" " * 10**6) >= 10**6 // 4
