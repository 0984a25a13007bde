"""Telling a solution apart from the reasoning that led to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from pdr_graph.llm.client import CLOSE, OPEN, ReplyParts, split_message, split_text
from tests.fakes import odd_texts

replies = st.lists(st.sampled_from([OPEN, CLOSE]) | odd_texts, max_size=8).map("".join)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>2 + 2</think>\nIt is 4.", ReplyParts("2 + 2", "It is 4.", True)),
        ("2 + 2</think>It is 4.", ReplyParts("2 + 2", "It is 4.", True)),
        ("It is 4.", ReplyParts("", "It is 4.", True)),
        ("", ReplyParts("", "", True)),
        (" \n ", ReplyParts("", "", True)),
        ("<think>2 + 2", ReplyParts("2 + 2", "", False)),
        ("<think>", ReplyParts("", "", False)),
        ("</think>", ReplyParts("", "", True)),
        ("<think></think>", ReplyParts("", "", True)),
        ("<think>2 + 2</think>", ReplyParts("2 + 2", "", True)),
        ("It is 4. <think>or is it", ReplyParts("It is 4. or is it", "", False)),
        ("<think>a</think>b<think>c</think>d", ReplyParts("a</think>b<think>c", "d", True)),
        ("<think>a<think>b</think>c", ReplyParts("a<think>b", "c", True)),
    ],
)
def test_the_solution_is_what_follows_the_last_thought(text, parts):
    """Tags closed, unclosed, closing only, several and none."""
    assert split_text(text) == parts


def test_a_second_thought_that_never_ended_leaves_no_solution():
    """What was said before it is no solution either: the model went on."""
    parts = split_text("<think>a</think>It is 4. <think>But wait")
    assert (parts.solution, parts.closed) == ("", False)
    assert "But wait" in parts.thought


@given(before=replies, rest=odd_texts)
def test_an_unclosed_thought_never_yields_a_solution(before, rest):
    """Whatever came before: after an opening tag without a closing one there is no solution."""
    rest = rest.replace(CLOSE, "")
    parts = split_text(f"{before}{OPEN}{rest}")
    assert (parts.solution, parts.closed) == ("", False)


@given(text=replies)
def test_splitting_never_raises_and_invents_nothing(text):
    """Both parts are text of the reply; a solution holds no tag of a thought."""
    parts = split_text(text)
    assert parts.solution in text
    assert CLOSE not in parts.solution
    assert OPEN not in parts.solution
    assert parts.closed or not parts.solution


@given(thought=odd_texts, solution=odd_texts)
def test_a_closed_thought_is_told_apart_exactly(thought, solution):
    """Both ways of closing a thought, with the white space around the parts stripped."""
    for tag in (OPEN, CLOSE):
        thought, solution = thought.replace(tag, ""), solution.replace(tag, "")
    parts = ReplyParts(thought.strip(), solution.strip(), True)
    assert split_text(f"{OPEN}{thought}{CLOSE}{solution}") == parts
    assert split_text(f"{thought}{CLOSE}{solution}") == parts


def test_reasoning_that_the_server_separated_is_the_thought():
    """The text is then the solution as it stands."""
    message = AIMessage("It is 4.", additional_kwargs={"reasoning_content": "2 + 2"})
    assert split_message(message) == ReplyParts("2 + 2", "It is 4.", True)


def test_reasoning_in_both_places_is_put_together():
    """A server may separate the first thought and leave another in the text."""
    message = AIMessage("more</think>4", additional_kwargs={"reasoning_content": "2 + 2, "})
    assert split_message(message) == ReplyParts("2 + 2, more", "4", True)


def test_separated_reasoning_does_not_close_a_thought_in_the_text():
    """An unclosed thought yields no solution, wherever the first part of it is."""
    message = AIMessage("<think>still", additional_kwargs={"reasoning_content": "2 + 2 "})
    assert split_message(message) == ReplyParts("2 + 2 still", "", False)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "thinking", "thinking": "2 + 2"},
        {"type": "reasoning", "reasoning": "2 + 2"},
    ],
)
def test_reasoning_in_content_blocks_is_the_thought(block):
    """Providers that answer in blocks have one for the thought."""
    message = AIMessage([block, {"type": "text", "text": "It is 4."}])
    assert split_message(message) == ReplyParts("2 + 2", "It is 4.", True)


@pytest.mark.parametrize(
    "content",
    [
        [],
        ["It is ", "4."],
        [{"type": "thinking"}, {"type": "text", "text": "x"}],
        [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]}],
        [{"type": "image_url", "image_url": {"url": "data:,"}}],
        [{"type": "thinking", "thinking": None}],
    ],
)
def test_unusual_blocks_are_no_error(content):
    """A block without the text that one expects is passed over."""
    parts = split_message(AIMessage(content))
    assert parts.closed
    assert parts.thought == ""


@given(text=replies, reasoning=st.none() | odd_texts)
def test_no_message_is_too_odd_to_split(text, reasoning):
    """Reasoning is only ever added to the thought."""
    message = AIMessage(text, additional_kwargs={"reasoning_content": reasoning})
    parts, alone = split_message(message), split_text(text)
    assert (parts.solution, parts.closed) == (alone.solution, alone.closed)
    assert parts.thought == f"{reasoning or ''}{alone.thought}"
