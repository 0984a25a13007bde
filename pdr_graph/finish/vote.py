"""Self-consistency: the answer that most drafts reach, without a further call."""

from pdr_graph.step import Step
from pdr_graph.types import Solution


async def vote(step: Step) -> Solution:
    """Hand in a draft of the most common answer; a tie goes to the lower draft index.

    Drafts without an answer do not vote. If none has one, the first is handed in as it is.
    """
    draft = (await step.by_agreement())[0]
    if draft["answer"] is None:
        step.notes.append("no draft states an answer, so there is nothing to vote on")
    return Solution(
        text=draft["solution"],
        answer=draft["answer"],
        truncated=draft["truncated"],
        finish="vote",
    )
