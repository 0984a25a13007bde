"""What a distiller, a finish or a verifier receives: the run, and the model to ask."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable, iscoroutinefunction
from traceback import extract_tb
from typing import Any

from langgraph.errors import GraphBubbleUp

from pdr_graph.answers import AnswerKind, clusters
from pdr_graph.ballot import add_votes
from pdr_graph.budget import CANDIDATE_TOKENS, TEMPLATE_TOKENS
from pdr_graph.config import PDRConfig
from pdr_graph.errors import CallError, PDRError, StepError, StepLostError, retry_on
from pdr_graph.judge import DraftJudge, Evidence, UnweighedError
from pdr_graph.llm.asker import Asker
from pdr_graph.llm.tokens import TokenCounter
from pdr_graph.types import Draft, Solution, Tally, Workspace
from pdr_graph.validation import shown


@dataclass(frozen=True, slots=True)
class Step:
    """One pluggable step of one run."""

    problem: str
    problem_tokens: int
    config: PDRConfig
    drafts: Sequence[Draft]
    """Drafts of the current round that have a solution, by index; empty in a run without rounds."""
    workspaces: Sequence[Workspace]
    """Workspaces that the drafts of this round have read; a finish reads the latest ones."""
    next_width: int
    """Calls that will read what a distiller makes now."""
    answers: AnswerKind
    ask: Asker
    """Calls the model, and counts what every call costs."""
    rng: random.Random
    """Seeded by the run, the round and the node, so that a resumed step draws alike."""
    tally: Tally | None = None
    """The votes of all rounds so far; None unless `PDRConfig.pool_rounds` is set."""
    solution: Solution | None = None
    """What a verifier judges; None before the finish."""
    judge: DraftJudge | None = None
    """Weighs a refinement as it has weighed the drafts; None leaves all alike."""
    context: Any = None  # Any: whatever the graph around the run declares
    """Context of the graph that this run is a node or a tool of; None in a run of its own."""
    notes: list[str] = field(default_factory=list)
    """Sentences that the step leaves for the reader of the run."""
    readers: TokenCounter | None = None
    """Counts for the models that read workspaces; None is the model that the step asks."""

    @property
    def counter(self) -> TokenCounter:
        """Counts the tokens of a workspace as the models that will read it count them.

        The step's own prompts are counted by `ask.client.counter`.
        """
        return self.readers or self.ask.client.counter

    def candidate_tokens(self, count: int) -> int:
        """Return how many model tokens each of `count` candidates may take in one prompt."""
        limit = self.config.solution_tokens
        window = self.ask.client.window
        if window is None:
            return limit
        free = window - self.config.max_tokens - self.problem_tokens - TEMPLATE_TOKENS
        return max(1, min(limit, free // max(1, count) - CANDIDATE_TOKENS))

    async def ballot(self) -> Tally:
        """Return the votes of the drafts: of all rounds where they are pooled, else of this one."""
        return self.tally or await add_votes(self.answers, None, self.drafts)

    async def by_agreement(self) -> list[Draft]:
        """Return the drafts, those of the most common answer first, then by index."""
        groups = await clusters(self.answers, [draft["answer"] for draft in self.drafts])
        order = [index for group in groups for index in group]
        order += [index for index in range(len(self.drafts)) if index not in order]
        return [self.drafts[index] for index in order]


def attempt(
    ask: Asker, problem: str, workspaces: Sequence[Workspace], index: int = 0
) -> tuple[str, dict[str, object]]:
    """Return template and values of an attempt at the problem: a draft, or the refinement.

    If there are several workspaces, each attempt reads its own, by its index.
    """
    answer_format = ask.prompts.render(f"answer_{ask.config.answer}")
    values: dict[str, object] = {"problem": problem, "answer_format": answer_format}
    text = workspaces[index % len(workspaces)]["text"] if workspaces else ""
    return ("improve", {**values, "workspace": text}) if text else ("draft", values)


async def weigh(ask: Asker, judge: DraftJudge | None, draft: Draft, problem: str) -> None:
    """Set the weight of a draft by the judge, or its field `unweighed` to the reason for none.

    The cost is charged in sequence, after the draft's own call.
    """
    if judge is None:
        return
    if ask.told_apart and judge.model != (name := ask.client.name):
        draft["unweighed"] = f"the judge knows drafts of {judge.model!r}, not of {name!r}"
        return
    _, values = attempt(ask, problem, [])
    evidence = Evidence(problem, ask.prompts.render("draft", **values), ask.client)
    try:
        draft["weight"] = await judge.weigh(draft, evidence)
    except (UnweighedError, CallError) as error:
        draft["unweighed"] = str(error)
    finally:
        ask.meter.add([evidence.spent])


def closing_line(answer: str | None) -> str:
    """Return the line that a solution keeps where its text is cut; empty without an answer."""
    return f"Final answer: {answer}" if answer else ""


_MOST_SAID = 1000
"""Most characters quoted of an error in the user's code."""


async def outcome(kind: str, name: str, function: Callable[[Step], object], step: Step) -> object:
    """Return what a step of the user's own returns; a plain function is called in a thread.

    Raises:
        StepError: it raised an error, which is the cause; the package's own errors, and questions
            to a person, pass as they are.
    """
    try:
        if iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__):
            returned = function(step)
        else:
            returned = await asyncio.to_thread(_returned, function, step)
        return await returned if isawaitable(returned) else returned
    except (PDRError, GraphBubbleUp):
        raise
    # Whatever the user's code raises has to be told by the name of the step.
    except Exception as error:
        made = StepLostError if retry_on(error) and isinstance(error, OSError) else StepError
        where = extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:_MOST_SAID]
        why = f"raised {type(error).__name__}: {said}".rstrip(": ")
        raise made(kind, name, f"{why} ({where.filename}, line {where.lineno})") from error


def _returned(function: Callable[[Step], object], step: Step) -> object:
    try:
        return function(step)
    except StopIteration as error:  # which no future can hold
        raise RuntimeError("StopIteration: it asked an empty iterator for its next item") from error


def returned_wrongly(kind: str, name: str, value: object, expected: str) -> StepError:
    """Return the error for a step that returned a value of the wrong form."""
    shape = "" if value is None else f" ({type(value).__name__})"
    return StepError(kind, name, f"returned {shown(value)}{shape}; expected {expected}")
