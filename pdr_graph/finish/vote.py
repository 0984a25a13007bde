"""Self-consistency: the answer that most drafts reach, without a further call."""

from pdr_graph.step import Step
from pdr_graph.types import Solution


async def vote(step: Step) -> Solution:
    """Hand in a draft of the most common answer; a tie goes to the lower draft index.

    Drafts without an answer do not vote. If none has one, the first is handed in as it is. Where
    rounds are pooled, the drafts of all of them vote.
    """
    if step.tally is not None and step.tally["votes"]:
        first = step.tally["votes"][0]
        return Solution(
            text=first["solution"], answer=first["answer"], truncated=False, finish="vote"
        )
    draft = (await step.by_agreement())[0]
    if draft["answer"] is None:
        step.notes.append("no draft states an answer, so there is nothing to vote on")
    return Solution(
        text=draft["solution"],
        answer=draft["answer"],
        truncated=draft["truncated"],
        finish="vote",
    )
