"""Who judges the solution: nobody, the last drafts, or the model."""

import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from pdr_graph.llm.tokens import clip
from pdr_graph.step import Step, closing_line
from pdr_graph.types import Verdict

__all__ = ["VERIFIERS", "Verify"]


async def none(step: Step) -> Verdict:
    """Judge nothing."""
    return Verdict(verifier="none", accepted=None, reason="not verified")


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


_VERDICT = re.compile(r"verdict\W{1,8}(correct|incorrect)\b", re.IGNORECASE)


async def judge(step: Step) -> Verdict:
    """Accept what the model finds correct, asked once.

    A reply without a verdict neither accepts nor rejects: `accepted` is None, the reason says so.
    """
    solution = step.solution["text"] if step.solution else ""
    if not solution:
        return Verdict(verifier="judge", accepted=False, reason="there is no solution to judge")
    answer = step.solution["answer"] if step.solution else None
    keep = closing_line(answer)
    text = await clip(solution, step.candidate_tokens(1), step.counter, keep=keep)
    reply = await step.ask.one("judge", problem=step.problem, candidates=text)
    found = _VERDICT.findall(reply.solution[-2000:])
    if not found:
        return Verdict(verifier="judge", accepted=None, reason="the judge stated no verdict")
    reason = await clip(reply.solution, step.config.kappa // 2, step.counter)
    return Verdict(verifier="judge", accepted=found[-1].lower() == "correct", reason=reason)


Verify = Callable[[Step], Awaitable[Verdict]]
"""Judges `Step.solution`."""

VERIFIERS: Mapping[str, Verify] = MappingProxyType(
    {"none": none, "consensus": consensus, "judge": judge}
)
