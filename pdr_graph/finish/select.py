"""GenSelect: one call reads the drafts and names the one to hand in."""

from pdr_graph.distill.candidates import candidates, picked
from pdr_graph.step import Step
from pdr_graph.types import Solution


async def select(step: Step) -> Solution:
    """Hand in the named draft; the most agreed one where the reply names none."""
    drafts = list(step.drafts)
    reply = await step.ask.one(
        "select", problem=step.problem, candidates=await candidates(step, drafts)
    )
    named = picked(reply.solution, len(drafts))
    if not named:
        step.notes.append("the model named no candidate; the most agreed draft is handed in")
    draft = drafts[named[0]] if named else (await step.by_agreement())[0]
    return Solution(
        text=draft["solution"],
        answer=draft["answer"],
        truncated=draft["truncated"],
        finish="select",
    )
