"""What an evaluation asks: problems with their gold answers, and how answers are scored."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from pdr_graph.answers import CheckVerdict
from pdr_graph.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem."""

    id: str
    text: str
    gold: str
    """The right answer."""
    index: int = 0
    """Position in its source, for a scorer of the source's own."""


Score = Callable[[Problem, str], Awaitable[CheckVerdict]]
"""Judges an extracted answer by the rule of the problems' source."""


@dataclass(frozen=True, slots=True)
class Problems:
    """The problems of one evaluation."""

    source: str
    """As given on the command line."""
    problems: tuple[Problem, ...]
    sha256: str
    scored_by: str
    """A sentence for the record."""
    score: Score | None = None
    """None leaves the answer to the checker of the arm's answer kind."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions decide what the problems are."""

    def first(self, limit: int | None) -> "Problems":
        """Return the first `limit` problems, all of them for None; the hash becomes theirs."""
        if limit is None or limit >= len(self.problems):
            return self
        kept = self.problems[:limit]
        return Problems(self.source, kept, hash_of(kept), self.scored_by, self.score, self.packages)


def hash_of(problems: Sequence[Problem]) -> str:
    """Return the sha256 of problems as JSON lines."""
    digest = hashlib.sha256()
    for each in problems:
        line = json.dumps([each.id, each.text, each.gold], ensure_ascii=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def checked(problems: Sequence[Problem], source: str) -> tuple[Problem, ...]:
    """Return the problems, if they can be told apart.

    Raises:
        ConfigError: there are none, or two have one id.
    """
    if not problems:
        raise ConfigError(f"{source!r} holds no problems")
    seen: set[str] = set()
    for each in problems:
        if each.id in seen:
            raise ConfigError(
                f"{source!r} has two problems with id {each.id!r}; ids tell samples apart"
            )
        seen.add(each.id)
    return tuple(problems)
