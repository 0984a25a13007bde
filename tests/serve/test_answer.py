"""The answer's text, released piece by piece."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.errors import CallError
from pdr_graph.llm.client import split_text
from pdr_graph.serve.reply import Answer

WORDS = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "</th", "so ", "\n", " ", "4", "stop", "st", "é"]),
    max_size=25,
).map("".join)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@given(WORDS, st.lists(st.integers(0, 500), max_size=20), st.booleans())
def test_the_pieces_are_the_solution(text, cuts, may_think):
    """However the model's text is cut; or it is said that they cannot be."""
    solution = split_text(text).solution
    whole = solution.partition("stop")[0]
    answer = Answer(["stop"], may_think=may_think)
    sent = "".join(answer.take(1, piece) for piece in pieces_of(text, cuts))
    try:
        sent += answer.finish(solution)
    except CallError:
        # Only a text with thoughts in odd places can have been taken for an answer.
        assert "think>" in text
    else:
        assert sent == whole
    assert answer.is_cut(solution) == ("stop" in solution)


@given(st.text(alphabet="ab \n", max_size=60), st.lists(st.integers(0, 500), max_size=20))
def test_a_plain_answer_is_never_held_as_a_whole(text, cuts):
    """All but its blank end is sent before the end is known."""
    answer = Answer(may_think=False)
    sent = "".join(answer.take(1, piece) for piece in pieces_of(text, cuts))
    assert sent == text.strip()


def test_a_thought_that_the_prompt_has_opened_is_held():
    """Until it is closed."""
    answer = Answer()
    assert answer.take(1, "Let me see. 2 + 2") == ""
    assert answer.take(1, "</think>\n\nIt is") == "It is"
    assert answer.take(1, " 4. ") == " 4."
    assert answer.finish("It is 4.") == ""


def test_a_text_is_not_held_once_the_thought_came_apart():
    """Such a server leaves none in the text."""
    answer = Answer()
    assert answer.take(1, "", thought_apart=True) == ""
    assert answer.take(1, "It is") == "It is"


def test_a_second_attempt_goes_on_where_the_first_was():
    """What was sent is not sent again."""
    answer = Answer(may_think=False)
    assert answer.take(1, "It is fo") == "It is fo"
    assert answer.take(2, "It is") == ""
    assert answer.take(2, " four") == "ur"
    assert answer.finish("It is four") == ""


def test_a_second_attempt_that_differs_is_told():
    """Sent text cannot be called back."""
    answer = Answer(may_think=False)
    answer.take(1, "It is 4")
    answer.take(2, "It is 5")
    with pytest.raises(CallError, match="came out otherwise"):
        answer.finish("It is 5")
