"""Code: a task and tests in, code out; the tests are the verifier.

Code that fails goes back with what the tests printed, for at most `max_extra_rounds` more rounds.
"""

import re

from langgraph.graph import START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from typing_extensions import TypedDict

from graphs.tasks.unit_tests import run_tests
from pdr_graph import Extensions, ModelClient, Models, PDRConfig, Result, pdr_node
from pdr_graph.llm.tokens import clip
from pdr_graph.step import Step
from pdr_graph.types import Verdict

FIELDS = {"answer": "text", "verifier": "unit_tests", "max_extra_rounds": 2}
SECONDS = 20.0
"""Seconds that the tests may take."""

_BLOCK = re.compile(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_TESTS = re.compile(r"<tests>\n(.*)\n</tests>", re.DOTALL)


class CodeState(TypedDict, total=False):
    """What is asked, and the answer."""

    task: str
    tests: str
    """Python that raises if the code is wrong; plain `assert` lines will do."""
    code: str
    passed: bool
    report: str
    """What the tests printed last."""


def problem_of(state: CodeState) -> str:
    """Return the task as the model and the verifier read it."""
    return (
        f"{state['task'].strip()}\n\nReply with the whole program in one Python code block. After "
        f"it, these tests are run:\n<tests>\n{state['tests'].strip()}\n</tests>"
    )


def code_of(solution: str) -> str:
    """Return the last block of code in a reply, or the whole reply if it has none."""
    blocks = _BLOCK.findall(solution)
    return str(blocks[-1] if blocks else solution).strip()


async def unit_tests(step: Step) -> Verdict:
    """Accept code that passes the tests of the problem."""
    tests = _TESTS.search(step.problem)
    if tests is None or step.solution is None:
        return Verdict(verifier="unit_tests", accepted=None, reason="there is nothing to test")
    failure = await run_tests(code_of(step.solution["text"]), tests[1], within_s=SECONDS)
    if failure is None:
        return Verdict(verifier="unit_tests", accepted=True, reason="all tests passed")
    # The reason stands in the next workspace, beside the code.
    reason = await clip(failure, step.config.kappa // 2, step.counter)
    return Verdict(verifier="unit_tests", accepted=False, reason=reason)


def update_of(result: Result) -> CodeState:
    """Return the update of the parent's state."""
    return {
        "code": code_of(result.solution),
        "passed": result.verdict["accepted"] is True,
        "report": result.verdict["reason"],
    }


def build(
    models: ModelClient | Models, config: PDRConfig
) -> CompiledStateGraph[CodeState, None, CodeState, CodeState]:
    """Compile the graph; its input is `{"task": …, "tests": …}`."""
    node = pdr_node(
        config,
        model=models,
        input=problem_of,
        output=update_of,
        extensions=Extensions(verifiers={"unit_tests": unit_tests}),
    )
    builder = StateGraph(CodeState)
    builder.add_node("write", node)
    builder.add_edge(START, "write")
    return builder.compile(name="code")
