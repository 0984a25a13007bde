r"""The task: which `terms` of these numbers sum to the target? Finding them is the hard part.

An attempt boxes the numbers, in the order of the list, as one number. Then it writes their sum, and
whether that is the target::

    Numbers 15 26 18 29 target 41
    \boxed{1526}=41✓
    \boxed{1518}=33✗

So whether an attempt is right can be read off it. One set of numbers of a list is right.
"""

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

RIGHT, WRONG = "✓", "✗"
"""What an attempt says of itself."""
SMALLEST = 10
LARGEST_SUM = 99
"""Every number and every sum has two digits, so that the tokenizer has one token for each."""


@dataclass(frozen=True, slots=True)
class Size:
    """How hard the task is."""

    numbers: int = 4
    terms: int = 2
    largest: int = 29
    """Largest number of a list; `terms` of them must not be above `LARGEST_SUM`."""


@dataclass(frozen=True, slots=True)
class Question:
    """One problem, its numbers in the order in which they are listed."""

    numbers: tuple[int, ...]
    target: int
    solution: tuple[int, ...]
    """The only subset with that sum, in the order of the list."""

    @property
    def text(self) -> str:
        """Return what the model is asked."""
        return f"Numbers {' '.join(map(str, self.numbers))} target {self.target}"

    @property
    def gold(self) -> str:
        """Return the right answer: the numbers of the subset, written one after another."""
        return joined(self.solution)


def joined(subset: Sequence[int]) -> str:
    """Return a subset as one number."""
    return "".join(map(str, subset))


def attempt(subset: Sequence[int], target: int) -> str:
    """Return an attempt with a subset, truthfully checked."""
    mark = RIGHT if sum(subset) == target else WRONG
    return f"\\boxed{{{joined(subset)}}}={sum(subset)}{mark}"


def questions(seed: int, size: Size) -> Iterator[Question]:
    """Yield questions without end; a seed has its own."""
    rng = random.Random(f"training-study:{seed}")
    while True:
        numbers = tuple(rng.sample(range(SMALLEST, size.largest + 1), size.numbers))
        subsets = list(itertools.combinations(numbers, size.terms))
        solution = rng.choice(subsets)
        if sum(sum(subset) == sum(solution) for subset in subsets) == 1:
            yield Question(numbers, sum(solution), solution)


def write_questions(file: Path, seed: int, count: int, size: Size) -> None:
    """Write distinct questions as the JSON lines that `pdr-graph` reads: id, problem, answer."""
    seen: dict[str, Question] = {}
    for question in questions(seed, size):
        seen.setdefault(question.text, question)
        if len(seen) == count:
            break
    lines = (
        json.dumps({"id": f"s{seed}-{index}", "problem": each.text, "answer": each.gold})
        for index, each in enumerate(seen.values())
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
