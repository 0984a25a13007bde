"""The paper's finish: one more call, with the workspace in view, is the answer."""

from pdr_graph.step import Step
from pdr_graph.types import Solution


async def refine(step: Step) -> Solution:
    """Ask for the solution; without a workspace this is long CoT."""
    answer_format = step.ask.prompts.render(f"answer_{step.config.answer}")
    text = step.workspaces[0]["text"] if step.workspaces else ""
    if text:
        reply = await step.ask.one(
            "improve", problem=step.problem, workspace=text, answer_format=answer_format
        )
    else:
        reply = await step.ask.one("draft", problem=step.problem, answer_format=answer_format)
    if not reply.solution:
        step.notes.append(
            "the final call spent its max_tokens on thought and states no solution"
            if reply.truncated
            else "the final call came back empty"
        )
    return Solution(
        text=reply.solution,
        answer=step.answers.extract(reply.solution),
        truncated=reply.truncated,
        finish="refine",
    )
