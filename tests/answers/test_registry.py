"""Answer kinds are found by name."""

import pytest

from pdr_graph.answers import AnswerKind, answer_kind, check
from pdr_graph.errors import ConfigError


@pytest.mark.parametrize(("name", "short"), [("math", True), ("choice", True), ("text", False)])
def test_every_kind_says_what_it_is(name: str, short: bool) -> None:
    """And is made once, so that its workers are shared."""
    kind: AnswerKind = answer_kind(name)
    assert (kind.name, kind.has_short_answer) == (name, short)
    assert answer_kind(name) is kind


def test_unknown_kind_is_named_with_the_known_ones() -> None:
    """In one sentence."""
    with pytest.raises(ConfigError, match="'maths'; known are math, choice, text"):
        answer_kind("maths")


async def test_text_has_no_short_answer() -> None:
    """Texts are the same if they say the same, and none is extracted."""
    kind = answer_kind("text")
    assert kind.extract(r"An essay with \boxed{5}.") is None
    assert await kind.same("An essay.\n", "An essay.")


async def test_choices_are_compared_as_letters() -> None:
    """Nothing else is to be compared."""
    assert await answer_kind("choice").same("B", "B")
    assert not await answer_kind("choice").same("B", "C")


async def test_check_needs_no_checker() -> None:
    """The one that `answer_kind` shares serves."""
    assert (await check("25", r"\boxed{25}")).correct
