"""Decides whether a solution, or a draft, is right.

What only an evaluation can do, since it knows the gold answer.

`oracle_correct` and `oracle_wrong` admit only correct, or only wrong, drafts to the workspace: up
to k of them, drawn anew for each next draft, as random-k does (paper, section 5: how far a better
distiller could go, and how a wrong one anchors). Where no draft qualifies the workspace is empty,
and the next call starts from the problem alone. A draft whose answer could not be judged counts
as wrong; one without an answer too.

`gold` is a verifier that accepts a right answer: with `max_extra_rounds`, an oracle for stopping.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pdr_graph.answers import AnswerKind, MathAnswers, answer_kind, check
from pdr_graph.distill import Distiller, Entry, no_calls
from pdr_graph.distill.workspace import numbered
from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem, Score
from pdr_graph.eval.records import Reason
from pdr_graph.extensions import Extensions
from pdr_graph.step import Step
from pdr_graph.types import Draft, Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """What came of a solution."""

    answer: str | None
    """As extracted; None if the solution states none."""
    reason: Reason

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.reason == "correct"


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges solutions of problems from one source, read as one kind of answer."""

    kind: AnswerKind
    score: Score | None
    """The source's own rule; None checks by the kind's."""

    @classmethod
    def of_kind(cls, name: str, score: Score | None) -> "Judge":
        """Make a judge.

        Raises:
            ConfigError: solutions of this kind have no answer that could be checked.
        """
        kind = answer_kind(name)
        if not kind.has_short_answer:
            raise ConfigError(
                f"answer kind {name!r} has no short answer to check; choose math or choice"
            )
        return cls(kind, score)

    async def solution(self, problem: Problem, text: str, *, truncated: bool) -> Judgement:
        """Judge a solution part; `truncated` says that the token limit cut it."""
        if self.score is None and isinstance(self.kind, MathAnswers):
            checked = await check(problem.gold, text, truncated=truncated)
            return Judgement(checked.extracted, checked.verdict.value)
        answer = self.kind.extract(text)
        if answer is None:
            return Judgement(None, "truncated" if truncated else "no_answer")
        if self.score is not None:
            return Judgement(answer, (await self.score(problem, answer)).value)
        gold = self.kind.extract(f"\\boxed{{{problem.gold}}}") or problem.gold
        same = await self.kind.same(gold, answer)
        return Judgement(answer, "correct" if same else "wrong")

    async def draft(self, problem: Problem, draft: Draft) -> Judgement:
        """Judge a draft; one without a solution is judged by why it has none."""
        if draft["error"] is None:
            return await self.solution(problem, draft["solution"], truncated=draft["truncated"])
        reasons: dict[str, Reason] = {"truncated": "truncated", "empty": "no_answer"}
        return Judgement(None, reasons.get(draft["error"], "failed"))


def with_oracles(judge: Judge, problem: Problem, extensions: Extensions) -> Extensions:
    """Add the oracles for one problem to the user's own extensions."""

    async def verdicts(drafts: Sequence[Draft]) -> list[bool]:
        judged = await asyncio.gather(*(judge.draft(problem, draft) for draft in drafts))
        return [each.correct for each in judged]

    async def only(step: Step, *, correct: bool) -> list[list[Entry]]:
        right = await verdicts(step.drafts)
        fit = [
            draft for draft, is_right in zip(step.drafts, right, strict=True) if is_right == correct
        ]
        if not fit:
            which = "correct" if correct else "wrong"
            step.notes.append(
                f"round {step.drafts[0]['round']}: no draft is {which}, the workspace is empty"
            )
        k = min(step.config.k, len(fit))
        return [numbered(step.rng.sample(fit, k)) for _ in range(step.next_width)]

    async def oracle_correct(step: Step) -> list[list[Entry]]:
        return await only(step, correct=True)

    async def oracle_wrong(step: Step) -> list[list[Entry]]:
        return await only(step, correct=False)

    async def gold(step: Step) -> Verdict:
        assert step.solution is not None  # a verifier runs after the finish
        judged = await judge.solution(
            problem, step.solution["text"], truncated=step.solution["truncated"]
        )
        # The reason goes into the next workspace: it must not tell the answer.
        reason = "" if judged.correct else "the final answer is not right"
        return Verdict(verifier="gold", accepted=judged.correct, reason=reason)

    return Extensions(
        distillers={
            **extensions.distillers,
            "oracle_correct": Distiller(oracle_correct, no_calls),
            "oracle_wrong": Distiller(oracle_wrong, no_calls),
        },
        finishes=extensions.finishes,
        verifiers={**extensions.verifiers, "gold": gold},
    )
