"""Answer kinds by name, the letter of a choice, and groups of equivalent answers."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.answers import (
    AnswerKind,
    Checker,
    ChoiceAnswers,
    MathAnswers,
    agreement,
    answer_kind,
    check,
    clusters,
)
from pdr_graph.errors import ConfigError


@pytest.mark.parametrize(("name", "short"), [("math", True), ("choice", True), ("text", False)])
def test_every_kind_says_what_it_is(name: str, short: bool) -> None:
    """A kind is made once, so that its workers are shared."""
    kind: AnswerKind = answer_kind(name)
    assert (kind.name, kind.has_short_answer) == (name, short)
    assert answer_kind(name) is kind


def test_unknown_kind_is_named_with_the_known_ones() -> None:
    """One sentence names the unknown kind and the known ones."""
    with pytest.raises(ConfigError, match="'maths'; known are math, choice, text"):
        answer_kind("maths")


async def test_text_has_no_short_answer() -> None:
    """Texts are the same if they say the same, and none is extracted."""
    kind = answer_kind("text")
    assert kind.extract(r"An essay with \boxed{5}.") is None
    assert await kind.same("An essay.\n", "An essay.")


async def test_choices_are_compared_as_letters() -> None:
    """Equal letters are the same answer."""
    assert await answer_kind("choice").same("B", "B")
    assert not await answer_kind("choice").same("B", "C")


async def test_check_needs_no_checker() -> None:
    """The shared checker of `answer_kind` serves."""
    assert (await check("25", r"\boxed{25}")).correct


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
def test_the_letter_of_a_choice(solution: str, letter: str | None) -> None:
    """One of A to J, and only one."""
    assert ChoiceAnswers().extract(solution) == letter


@given(st.text())
def test_a_choice_is_read_from_any_text(text: str) -> None:
    """Nothing raises."""
    ChoiceAnswers().extract(text)


@dataclass
class Parity:
    """Numbers are the same if both are even or both odd; records what it compared."""

    name: str = "parity"
    has_short_answer: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)

    def extract(self, solution: str) -> str | None:
        return solution

    async def same(self, left: str, right: str) -> bool:
        self.asked.append((left, right))
        return int(left) % 2 == int(right) % 2


async def test_largest_group_comes_first() -> None:
    """Equal groups come in order of their first member; None is in no group."""
    answers = ["1", None, "2", "4", "3", "6", "6"]
    assert await clusters(Parity(), answers) == [[2, 3, 5, 6], [0, 4]]
    assert await clusters(Parity(), ["1", "2"]) == [[0], [1]]


async def test_identical_answers_are_compared_once() -> None:
    """Sixteen drafts with one answer cost nothing."""
    kind = Parity()
    await clusters(kind, ["1"] * 16 + ["2"] * 16)
    assert kind.asked == [("1", "2")]


async def test_share_counts_drafts_without_an_answer() -> None:
    """A draft that states no answer agrees with nobody."""
    assert await agreement(Parity(), ["1", None, "3", "2"]) == ("1", 0.5)
    assert await agreement(Parity(), [None, None]) == (None, 0.0)
    assert await agreement(Parity(), []) == (None, 0.0)


async def test_mathematical_answers_are_grouped_by_meaning(checker: Checker) -> None:
    """The first spelling stands for the group."""
    answers = ["x+1", "1/2", "0.5", r"\frac12", "1+x", None]
    kind = MathAnswers(checker)
    assert await clusters(kind, answers) == [[1, 2, 3], [0, 4]]
    assert await agreement(kind, answers) == ("1/2", 0.5)


@given(st.lists(st.one_of(st.none(), st.integers(0, 9).map(str)), max_size=20))
async def test_groups_partition_the_answers(answers: list[str | None]) -> None:
    """Every answer is in one group, and groups are sorted by size."""
    groups = await clusters(Parity(), answers)
    members = sorted(index for group in groups for index in group)
    assert members == [index for index, answer in enumerate(answers) if answer is not None]
    assert [len(group) for group in groups] == sorted(map(len, groups), reverse=True)
