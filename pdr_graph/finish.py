"""How a run ends: by one more call, a vote, or a selection; and who judges what it ends with.

`guarded` joins both: its call is one voice in the vote, and is made only where it can decide the
vote.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import cast

from pdr_graph.ballot import add_votes, is_told, is_weighed, lead, ranked
from pdr_graph.distill.selection import candidates, picked
from pdr_graph.errors import CallError, counted
from pdr_graph.invocation import Invocation
from pdr_graph.judge import logprob_signals
from pdr_graph.llm.client import LOOP, Reply
from pdr_graph.llm.tokens import clip
from pdr_graph.self_check import preference
from pdr_graph.step import Step, attempt, closing_line, outcome, returned_wrongly, weigh
from pdr_graph.types import Draft, Solution, Verdict, Vote

__all__ = ["FINISHES", "VERIFIERS", "Finish", "OwnFinish", "OwnVerify", "Verify"]


async def refine(step: Step) -> Solution:
    """Ask for the solution, with the workspace in view; without a workspace this is long CoT."""
    return (await _refined(step))[0]


async def _refined(step: Step) -> tuple[Solution, Reply]:
    template, values = attempt(step.ask, step.problem, step.workspaces)
    reply = await step.ask.one(template, index=0, **values)
    looping = reply.finish_reason == LOOP
    if not reply.solution:
        step.notes.append(
            "the final call repeated itself and states no solution"
            if looping
            else "the final call spent its max_tokens on thought and states no solution"
            if reply.truncated
            else "the final call came back empty"
        )
    solution = Solution(
        text=reply.solution,
        answer=step.answers.extract(reply.solution),
        truncated=reply.truncated,
        finish="refine",
    )
    if looping:
        solution["loop"] = True
    Invocation.current().message_id = reply.message_id
    return solution, reply


async def select(step: Step) -> Solution:
    """Ask which draft to hand in (GenSelect); if the reply names none, take the most agreed one."""
    drafts = list(step.drafts)
    reply = await step.ask.one(
        "select", problem=step.problem, candidates=await candidates(step, drafts)
    )
    named = picked(reply.solution, len(drafts))
    if not named:
        step.notes.append("the model named no candidate; the most agreed draft is handed in")
    draft = drafts[named[0]] if named else (await step.by_agreement())[0]
    return _handed_in(draft, "select")


async def vote(step: Step) -> Solution:
    """Hand in a draft of the most common answer, without a further call (self-consistency).

    A tie goes to the lower draft index. Drafts without an answer do not vote; if none has one, the
    first is handed in. Where rounds are pooled, the drafts of all of them vote.
    """
    if step.tally is not None and step.tally["votes"]:
        return _voted(step.tally["votes"][0], "vote")
    draft = (await step.by_agreement())[0]
    if draft["answer"] is None:
        step.notes.append("no draft states an answer, so there is nothing to vote on")
    return _handed_in(draft, "vote")


async def weighted_vote(step: Step) -> Solution:
    """Hand in a draft of the answer that is ahead in `ballot.ranked`, without a further call.

    Without a judge that is the most common answer, and a tie goes to the likeliest draft.
    """
    tally = await step.ballot()
    if not tally["votes"]:
        return await vote(step)
    if len(tally["votes"]) > 1 and lead(tally) == 0 and not is_told(tally):
        step.notes.append(
            "the server tells no log-probabilities, so a tie goes to the first answer"
        )
    return _voted(ranked(tally)[0][0], "weighted_vote")


async def pairwise_vote(step: Step) -> Solution:
    """Vote as `weighted_vote`; where the two first answers are about even, compare their drafts.

    The comparison is one voice, divided between both, and costs two calls of one token. An answer
    with fewer votes never wins by it. Where the server tells no likelihoods, the vote stands.
    """
    tally = await step.ballot()
    order = ranked(tally)
    if len(order) > 1 and lead(tally) < 1 and order[0][0]["count"] <= order[1][0]["count"]:
        texts = [await _candidate(step, vote) for vote, _ in order[:2]]
        preferred = await preference(step.ask, step.problem, *texts)
        if preferred is None:
            step.notes.append(
                "two answers are about even and could not be compared, since the server tells no "
                "likelihoods of a choice; the vote stands"
            )
        elif order[1][1] + (1 - preferred) > order[0][1] + preferred:
            return _voted(order[1][0], "pairwise_vote")
    return Solution({**await weighted_vote(step), "finish": "pairwise_vote"})


async def _candidate(step: Step, vote: Vote) -> str:
    limit, keep = step.candidate_tokens(2), closing_line(vote["answer"])
    return await clip(vote["solution"], limit, step.counter, keep=keep)


async def guarded(step: Step) -> Solution:
    """Ask for a refinement if its one voice can decide the vote; hand in the leading answer.

    An answer with fewer votes than another is handed in only if it has more weight. Where the call
    fails, or states no answer, the vote stands.
    """
    tally = await step.ballot()
    if tally["votes"] and lead(tally) > 1:
        return _voted(ranked(tally)[0][0], "guarded")
    try:
        solution, reply = await _refined(step)
    except CallError as error:
        if not tally["votes"]:
            raise
        step.notes.append(f"the refinement failed, so the vote stands: {error}")
        return _voted(ranked(tally)[0][0], "guarded")
    if not tally["votes"]:
        return Solution({**solution, "finish": "guarded"})
    voice = await _voice(step, solution, reply)
    if voice["answer"] is None or (is_weighed(tally) and "weight" not in voice):
        why = "states no answer" if voice["answer"] is None else "cannot be weighed"
        step.notes.append(f"the refinement {why}, so the vote stands")
        return _voted(ranked(tally)[0][0], "guarded")
    first = ranked(await add_votes(step.answers, tally, [voice]))[0][0]
    if await step.answers.same(first["answer"], voice["answer"]):
        return Solution({**solution, "finish": "guarded"})
    return _voted(first, "guarded")


async def _voice(step: Step, solution: Solution, reply: Reply) -> Draft:
    """Return the refinement as one more draft, weighed as they are."""
    voice = Draft(
        round=step.ask.round_number,
        index=0,
        solution=solution["text"],
        answer=solution["answer"],
        tokens=reply.usage.completion,
        truncated=solution["truncated"],
        error=None,
        detail="",
        seed=0,
        seconds=reply.seconds,
        signals=logprob_signals(reply.logprobs),
    )
    if voice["answer"] is not None:
        await weigh(step.ask, step.judge, voice, step.problem)
    return voice


def _voted(first: Vote, finish: str) -> Solution:
    return Solution(text=first["solution"], answer=first["answer"], truncated=False, finish=finish)


def _handed_in(draft: Draft, finish: str) -> Solution:
    solution = Solution(
        text=draft["solution"],
        answer=draft["answer"],
        truncated=draft["truncated"],
        finish=finish,
    )
    if draft.get("loop"):
        solution["loop"] = True
    return solution


Finish = Callable[[Step], Awaitable[Solution]]
"""Turns the last workspace, or the last drafts, into the solution."""

OwnFinish = (
    Callable[[Step], Awaitable[Mapping[str, object] | str]]
    | Callable[[Step], Mapping[str, object] | str]
)
"""A finish of the user's own: returns a `Solution`, or its text alone. A plain function is called
in a thread."""

FINISHES: Mapping[str, Finish] = MappingProxyType(
    {
        "refine": refine,
        "vote": vote,
        "weighted_vote": weighted_vote,
        "pairwise_vote": pairwise_vote,
        "guarded": guarded,
        "select": select,
    }
)


def own_finish(name: str, function: OwnFinish) -> Finish:
    """Return a finish of the user's own in the form of the built-in ones.

    What a solution leaves out is filled in: the answer is extracted from the text. It raises
    `StepError` where the function raises an error, or returns neither solution nor text.
    """

    async def finish(step: Step) -> Solution:
        returned = await outcome("finish", name, function, step)
        fields = {"text": returned} if isinstance(returned, str) else returned
        text = fields.get("text") if isinstance(fields, Mapping) else None
        if not isinstance(fields, Mapping) or not isinstance(text, str):
            expected = "the solution's text, or Solution(text=…, answer=…)"
            raise returned_wrongly("finish", name, returned, expected)
        answer = fields["answer"] if "answer" in fields else step.answers.extract(text)
        if not isinstance(answer, str | None):
            raise returned_wrongly("finish", name, returned, "an answer that is a text, or None")
        filled = {"truncated": False, "finish": name, **fields, "answer": answer}
        return cast(Solution, filled)

    return finish


# ---------------------------------------------------------------------------------- verifiers


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
        reason=f"{agreeing} of the last {counted(total, 'draft')} reach the answer {answer}",
    )


_VERDICT = re.compile(r"verdict\W{1,8}(correct|incorrect)\b", re.IGNORECASE)


async def judge(step: Step) -> Verdict:
    """Ask the model once whether the solution is correct; accept it if so.

    A reply without a verdict neither accepts nor rejects: `accepted` is None, the reason says so.
    """
    solution = step.solution["text"] if step.solution else ""
    if not solution:
        return Verdict(verifier="judge", accepted=False, reason="there is no solution to judge")
    answer = step.solution["answer"] if step.solution else None
    keep = closing_line(answer)
    text = await clip(solution, step.candidate_tokens(1), step.ask.client.counter, keep=keep)
    reply = await step.ask.one("judge", problem=step.problem, candidates=text)
    found = _VERDICT.findall(reply.solution[-2000:])
    if not found:
        return Verdict(verifier="judge", accepted=None, reason="the judge stated no verdict")
    reason = await clip(reply.solution, step.config.kappa // 2, step.counter)
    return Verdict(verifier="judge", accepted=found[-1].lower() == "correct", reason=reason)


Verify = Callable[[Step], Awaitable[Verdict]]
"""Judges `Step.solution`."""

OwnVerify = (
    Callable[[Step], Awaitable[Mapping[str, object] | bool]]
    | Callable[[Step], Mapping[str, object] | bool]
)
"""A verifier of the user's own: returns a `Verdict`, or whether it accepts. A plain function is
called in a thread."""


def own_verify(name: str, function: OwnVerify) -> Verify:
    """Return a verifier of the user's own in the form of the built-in ones.

    It raises `StepError` where the function raises an error, or returns neither verdict nor bool.
    """

    async def verify(step: Step) -> Verdict:
        returned = await outcome("verifier", name, function, step)
        fields = returned if isinstance(returned, Mapping) else {"accepted": returned}
        accepted = fields.get("accepted", "absent")
        if type(accepted).__module__ == "numpy" and type(accepted).__name__ in {"bool", "bool_"}:
            accepted = bool(accepted)
        if returned is None or not isinstance(accepted, bool | None):
            expected = "True, False, or Verdict(verifier=…, accepted=…, reason=…)"
            raise returned_wrongly("verifier", name, returned, expected)
        reason = fields.get("reason") or ""
        if not isinstance(reason, str):
            raise returned_wrongly("verifier", name, returned, "a reason that is a text")
        filled = {"verifier": name, **fields, "accepted": accepted, "reason": reason}
        return cast(Verdict, filled)

    return verify


VERIFIERS: Mapping[str, Verify] = MappingProxyType(
    {"none": none, "consensus": consensus, "judge": judge}
)
