"""One model call judges the solution."""

import re

from pdr_graph.clip import clip
from pdr_graph.step import Step
from pdr_graph.types import Verdict

_VERDICT = re.compile(r"verdict\W{1,8}(correct|incorrect)\b", re.IGNORECASE)


async def judge(step: Step) -> Verdict:
    """Accept what the model finds correct.

    A reply without a verdict is neither: `accepted` is None, and the reason says so.
    """
    solution = step.solution["text"] if step.solution else ""
    if not solution:
        return Verdict(verifier="judge", accepted=False, reason="there is no solution to judge")
    answer = step.solution["answer"] if step.solution else None
    keep = f"Final answer: {answer}" if answer else ""
    text = await clip(solution, step.candidate_tokens(1), step.counter, keep=keep)
    reply = await step.ask.one("judge", problem=step.problem, candidates=text)
    found = _VERDICT.findall(reply.solution[-2000:])
    if not found:
        return Verdict(verifier="judge", accepted=None, reason="the judge stated no verdict")
    reason = await clip(reply.solution, step.config.kappa // 2, step.counter)
    return Verdict(verifier="judge", accepted=found[-1].lower() == "correct", reason=reason)
