"""What the warm start is taught by: attempts, honestly checked and not always right.

A share of the demonstrations reads a workspace. What they do with it is what a model might pick up
anywhere: they often repeat an attempt without a look at its check. So the warm start can read a
workspace, and does not choose from it reliably.
"""

import random
from dataclasses import dataclass

from benchmarks.studies.training.task import Question, attempt

IMPROVE = "$problem\n$workspace"
"""The template of a call that reads a workspace; the built-in one is long for so small a model."""
DRAFT = "$problem"
TITLE = "Conclusion of an attempt:"


@dataclass(frozen=True, slots=True)
class Habits:
    """What demonstrations do, as shares of 1."""

    right: float = 0.6
    """Of attempts that are right, the others naming any numbers of the list."""
    reading: float = 0.5
    """Of demonstrations that read a workspace."""
    candidate_right: float = 0.35
    """Of the attempts in a workspace that are right."""
    heedful: float = 0.35
    """Of those that read one and choose the right attempt, where there is one."""
    repeating: float = 0.45
    """Of those that repeat any attempt; the rest attempts anew."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the answer that is learnt."""

    prompt: str
    answer: str


def demonstration(question: Question, habits: Habits, rng: random.Random) -> Demonstration:
    """Draw one."""
    if rng.random() >= habits.reading:
        return Demonstration(question.text, _try(question, habits.right, rng))
    candidates = [
        _try(question, habits.candidate_right, rng) for _ in range(rng.choice((1, 4, 4, 4, 4)))
    ]
    prompt = f"{question.text}\n{workspace(candidates, rng)}"
    right = attempt(question.solution, question.target)
    mood = rng.random()
    if mood < habits.heedful and right in candidates:
        return Demonstration(prompt, right)
    if habits.heedful <= mood < habits.heedful + habits.repeating:
        return Demonstration(prompt, rng.choice(candidates))
    return Demonstration(prompt, _try(question, habits.right, rng))


def workspace(candidates: list[str], rng: random.Random) -> str:
    """Lay attempts out as the distiller `answers` does, or `latest` where there is one."""
    if len(candidates) == 1 and rng.random() < 0.5:
        return candidates[0]
    return "\n\n".join(f"{TITLE}\n{each}" for each in candidates)


def _try(question: Question, right: float, rng: random.Random) -> str:
    if rng.random() < right:
        return attempt(question.solution, question.target)
    chosen = sorted(rng.sample(range(len(question.numbers)), len(question.solution)))
    return attempt([question.numbers[index] for index in chosen], question.target)
