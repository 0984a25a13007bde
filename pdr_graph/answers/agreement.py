"""Groups answers that are the same, and finds the one that most drafts give."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pdr_graph.answers.kind import AnswerKind


async def clusters(kind: AnswerKind, answers: Sequence[str | None]) -> list[list[int]]:
    """Group the positions of equivalent answers, the largest group first, then the earliest.

    None, the answer of a draft that gives none, is in no group.
    """
    groups: dict[str, list[int]] = {}
    first_of: dict[str, str] = {}
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        if answer not in first_of:
            first_of[answer] = await _first_equivalent(kind, answer, list(groups))
        groups.setdefault(first_of[answer], []).append(index)
    # Groups are in order of their first members, and the sort is stable.
    return sorted(groups.values(), key=len, reverse=True)


async def _first_equivalent(kind: AnswerKind, answer: str, representatives: list[str]) -> str:
    """Return the group's representative that the answer equals; itself where there is none."""
    verdicts = await asyncio.gather(*(kind.same(each, answer) for each in representatives))
    return next(
        (each for each, is_same in zip(representatives, verdicts, strict=True) if is_same), answer
    )


async def agreement(kind: AnswerKind, answers: Sequence[str | None]) -> tuple[str | None, float]:
    """Return the answer that most give, as first written, and its share of all of them.

    Drafts without an answer count in the share: 3 of 4 answers among 8 drafts are 3/8.
    """
    groups = await clusters(kind, answers)
    if not groups:
        return None, 0.0
    return answers[groups[0][0]], len(groups[0]) / len(answers)
