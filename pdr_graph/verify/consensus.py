"""Do the last drafts agree with the solution?"""

from pdr_graph.step import Step
from pdr_graph.types import Verdict


async def consensus(step: Step) -> Verdict:
    """Accept a solution whose answer at least half of the last drafts reach."""
    answer = step.solution["answer"] if step.solution else None
    if answer is None:
        return Verdict(
            verifier="consensus", accepted=False, reason="the solution states no final answer"
        )
    agreeing = 0
    for draft in step.drafts:
        if draft["answer"] is not None and await step.answers.same(answer, draft["answer"]):
            agreeing += 1
    total = len(step.drafts)
    return Verdict(
        verifier="consensus",
        accepted=2 * agreeing >= total,
        reason=f"{agreeing} of the last {total} drafts reach the answer {answer}",
    )
