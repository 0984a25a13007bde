"""How a run ends: by one more call, by a vote, or by a selection among the drafts."""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from pdr_graph.distill.selection import candidates, picked
from pdr_graph.invocation import Invocation
from pdr_graph.llm.client import LOOP
from pdr_graph.step import Step, attempt
from pdr_graph.types import Draft, Solution

__all__ = ["FINISHES", "Finish"]


async def refine(step: Step) -> Solution:
    """Ask for the solution, with the workspace in view; without a workspace this is long CoT."""
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
    return solution


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
        first = step.tally["votes"][0]
        return Solution(
            text=first["solution"], answer=first["answer"], truncated=False, finish="vote"
        )
    draft = (await step.by_agreement())[0]
    if draft["answer"] is None:
        step.notes.append("no draft states an answer, so there is nothing to vote on")
    return _handed_in(draft, "vote")


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

FINISHES: Mapping[str, Finish] = MappingProxyType(
    {"refine": refine, "vote": vote, "select": select}
)
