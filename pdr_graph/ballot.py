"""Counts the answers of drafts: how many gave each, what they weigh, and which is ahead.

Each draft has one vote. Where a judge has weighed all drafts, the answer of the largest weight is
ahead (CISC, arXiv 2502.06233); otherwise that of the most drafts. A tie goes to the answer with
the draft whose tokens were the likeliest on average (DeepConf, 2508.15260), then to the first one.
"""

from collections.abc import Sequence

from pdr_graph.answers import AnswerKind, clusters
from pdr_graph.types import Draft, Tally, Vote

TIE_SIGNAL = "logprob"
"""Which signal of drafts decides between answers of equal weight: docs/results/selection.md."""
MAX_ANSWERS = 8
"""Different answers that a tally keeps; drafts with rarer ones are counted and forgotten."""


async def add_votes(kind: AnswerKind, tally: Tally | None, drafts: Sequence[Draft]) -> Tally:
    """Return the tally with drafts added, the most common answer first.

    A tie goes to the answer that came first. Drafts without an answer count as voters, as they do
    in `agreement`.
    """
    votes = list(tally["votes"]) if tally else []
    votes += [vote_of(draft, draft["answer"]) for draft in drafts if draft["answer"] is not None]
    groups = await clusters(kind, [vote["answer"] for vote in votes])
    return tally_of(votes, groups, voters=(tally["voters"] if tally else 0) + len(drafts))


def tally_of(votes: Sequence[Vote], groups: Sequence[Sequence[int]], *, voters: int) -> Tally:
    """Count votes whose answers are known to agree.

    Args:
        votes: One or more for each answer, in the order in which they came.
        groups: Positions in `votes` of each answer.
        voters: Drafts in all, those without an answer included.
    """
    # In the order of first votes. The clusters come sorted by size, and that counts an earlier vote
    # of many drafts as one.
    joined = [_joined([votes[index] for index in group]) for group in sorted(groups, key=min)]
    joined.sort(key=lambda vote: vote["count"], reverse=True)
    return Tally(voters=voters, votes=joined[:MAX_ANSWERS])


def vote_of(draft: Draft, answer: str) -> Vote:
    """Return the vote of one draft."""
    source = [draft["round"], draft["index"]]
    vote = Vote(answer=answer, count=1, solution=draft["solution"], source=source)
    if "weight" in draft:
        vote["weight"] = vote["best_weight"] = draft["weight"]
    if (logprob := draft.get("signals", {}).get(TIE_SIGNAL)) is not None:
        vote["logprob"] = logprob
    return vote


def _joined(votes: list[Vote]) -> Vote:
    """Join votes for one answer; it has a weight only if each of them has one."""
    best = max(votes, key=lambda vote: (vote.get("best_weight", 0.0), _likelihood(vote)))
    joined = Vote(
        answer=votes[0]["answer"],
        count=sum(vote["count"] for vote in votes),
        solution=best["solution"],
    )
    if "source" in best:
        joined["source"] = best["source"]
    if all("weight" in vote for vote in votes):
        joined["weight"] = sum(vote["weight"] for vote in votes)
        joined["best_weight"] = max(vote["best_weight"] for vote in votes)
    if (likelihood := max(map(_likelihood, votes))) > _UNKNOWN:
        joined["logprob"] = likelihood
    return joined


_UNKNOWN = float("-inf")
"""Likelihood of a draft whose server reports none; such a draft wins no tie."""


def _likelihood(vote: Vote) -> float:
    return vote.get("logprob", _UNKNOWN)


def is_weighed(tally: Tally) -> bool:
    """Tell whether a judge has weighed every draft with an answer."""
    return all("weight" in vote for vote in tally["votes"])


def is_told(tally: Tally) -> bool:
    """Tell whether the likelihood of any draft is known."""
    return any("logprob" in vote for vote in tally["votes"])


def ranked(tally: Tally) -> list[tuple[Vote, float]]:
    """Return the answers, the one that is ahead first, each with its weight.

    Without a judge, the weight of an answer is its number of drafts.
    """
    weighed = is_weighed(tally)
    weights = [(v, v["weight"] if weighed else float(v["count"])) for v in tally["votes"]]
    return sorted(
        weights, key=lambda each: (each[1], each[0]["count"], _likelihood(each[0])), reverse=True
    )


def share_ahead(tally: Tally) -> tuple[str | None, float]:
    """Return the answer that is ahead, and its share of all weight.

    Drafts without an answer weigh nothing where a judge has weighed the others, and 1 elsewhere.
    """
    order = ranked(tally)
    if not order:
        return None, 0.0
    whole = sum(weight for _, weight in order) if is_weighed(tally) else float(tally["voters"])
    first, weight = order[0]
    return first["answer"], weight / whole if whole else 0.0


def lead(tally: Tally) -> float:
    """Return by how much the answer that is ahead outweighs the next one; 0 without answers."""
    weights = [weight for _, weight in ranked(tally)[:2]]
    return weights[0] - sum(weights[1:]) if weights else 0.0


def is_decided(tally: Tally, more_drafts: int) -> bool:
    """Tell whether `more_drafts` further drafts cannot change which answer is ahead.

    False if `more_drafts` is 0, since there is nothing to skip. A draft weighs at most 1.
    """
    return lead(tally) > more_drafts > 0
