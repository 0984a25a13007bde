"""Who votes for what: attempts at one problem, grouped by answer.

Attempts that were found correct are one group, since each equals the gold answer; the others are
grouped by the equivalence of their answer kind, as the `vote` finish groups drafts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdr_graph.answers import AnswerKind, clusters
from pdr_graph.eval.stats import Votes

Attempt = Mapping[str, object]
"""Has `answer` (None if none is stated) and `correct`; a sample's record, or a draft's."""


async def count_votes(kind: AnswerKind, attempts: Sequence[Attempt]) -> Votes:
    """Count the votes of attempts at one problem."""
    groups = await _groups(kind, attempts)
    correct = [group for group in groups if attempts[group[0]]["correct"]]
    wrong = tuple(len(group) for group in groups if not attempts[group[0]]["correct"])
    num_voting = sum(map(len, groups))
    return Votes(
        num_correct=len(correct[0]) if correct else 0,
        wrong=wrong,
        num_silent=len(attempts) - num_voting,
    )


async def majority_is_correct(kind: AnswerKind, attempts: Sequence[Attempt]) -> bool:
    """Tell whether the answer of most attempts is right; a tie goes to the earlier attempt."""
    groups = await _groups(kind, attempts)
    return bool(groups) and bool(attempts[groups[0][0]]["correct"])


async def _groups(kind: AnswerKind, attempts: Sequence[Attempt]) -> list[list[int]]:
    """Group positions by answer, the largest group first, then the earliest."""
    correct = [index for index, each in enumerate(attempts) if each["correct"]]
    others = [
        str(each["answer"]) if each["answer"] is not None and not each["correct"] else None
        for each in attempts
    ]
    groups = [*await clusters(kind, others), *([correct] if correct else [])]
    return sorted(groups, key=lambda group: (-len(group), group[0]))
