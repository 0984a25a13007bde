"""Counts the answers of all rounds of a run, so that a later round adds to the votes before it.

Drafts are dropped once they are distilled; what is kept of them here is bounded: a few answers,
each with the number of drafts that gave it and the text of one. After Adaptive-Consistency
(arXiv 2305.11860), which samples until the answers so far agree.
"""

from collections.abc import Sequence

from pdr_graph.answers import AnswerKind, clusters
from pdr_graph.types import Draft, Tally, Vote

MAX_ANSWERS = 8
"""Different answers that a tally remembers; rarer ones count as drafts and are forgotten."""


async def add_votes(kind: AnswerKind, tally: Tally | None, drafts: Sequence[Draft]) -> Tally:
    """Return the tally with a round of drafts counted in, the most common answer first.

    A tie goes to the answer that came first. Drafts without an answer count as voters, as in
    `agreement`.
    """
    votes = list(tally["votes"]) if tally else []
    votes += [
        Vote(answer=draft["answer"], count=1, solution=draft["solution"])
        for draft in drafts
        if draft["answer"] is not None
    ]
    groups = await clusters(kind, [vote["answer"] for vote in votes])
    counted = [
        Vote({**votes[group[0]], "count": sum(votes[index]["count"] for index in group)})
        for group in groups
    ]
    counted.sort(key=lambda vote: vote["count"], reverse=True)
    voters = (tally["voters"] if tally else 0) + len(drafts)
    return Tally(voters=voters, votes=counted[:MAX_ANSWERS])


def is_decided(tally: Tally, more_drafts: int) -> bool:
    """Tell whether no number of further drafts can change who wins the vote."""
    votes = tally["votes"]
    if not votes:
        return False
    second = votes[1]["count"] if len(votes) > 1 else 0
    return votes[0]["count"] - second > more_drafts > 0
