"""Equivalent answers are grouped, and the largest group is the majority."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.answers import Checker, MathAnswers, agreement, clusters


@dataclass
class Parity:
    """Takes numbers for the same if both are even or both odd, and remembers what it was asked."""

    name: str = "parity"
    has_short_answer: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)

    def extract(self, solution: str) -> str | None:
        return solution

    async def same(self, left: str, right: str) -> bool:
        self.asked.append((left, right))
        return int(left) % 2 == int(right) % 2


async def test_largest_group_comes_first() -> None:
    """Among equals the earliest, and None is in no group."""
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
