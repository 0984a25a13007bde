"""Judges solutions and drafts by the gold answer, which only an evaluation knows.

The oracles of a run, which need the gold answer too, are made here:

- the distillers `oracle_correct` and `oracle_wrong` admit only correct, or only wrong, drafts to
  the workspace: up to k, drawn anew for each next draft as `random_k` does (paper, section 5: how
  far a better distiller could go, and how a wrong one anchors). If no draft qualifies, the
  workspace is empty and the next call starts from the problem alone. A draft without an answer
  counts as wrong, and so does one whose answer could not be judged.
- the verifier `gold` accepts only a right answer. With `max_extra_rounds` it shows what a perfect
  rule for stopping would gain.
"""

import asyncio
from dataclasses import dataclass
from functools import partial

from pdr_graph.answers import AnswerKind, MathAnswers, answer_kind, check
from pdr_graph.distill import Distiller, Entry, no_calls
from pdr_graph.distill.workspace import numbered
from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem, Score
from pdr_graph.eval.records import Reason
from pdr_graph.extensions import Extensions
from pdr_graph.judge import DraftJudge
from pdr_graph.step import Step
from pdr_graph.types import Draft, Verdict


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of judging a solution."""

    answer: str | None
    """As extracted; None if the solution states none."""
    reason: Reason

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.reason == "correct"


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges solutions of problems that share a source and a kind of answer."""

    kind: AnswerKind
    score: Score | None
    """The source's own rule; None uses the rule of the answer kind."""

    @classmethod
    def of_kind(cls, name: str, score: Score | None = None) -> "Judge":
        """Make a judge for an answer kind.

        Raises:
            ConfigError: solutions of this kind have no short answer to check.
        """
        kind = answer_kind(name)
        if not kind.has_short_answer:
            raise ConfigError(
                f"answer kind {name!r} has no short answer to check; choose math or choice"
            )
        return cls(kind, score)

    def __reduce__(self) -> tuple[object, ...]:
        """Unpickle as a new judge with its own workers."""
        return Judge.of_kind, (self.kind.name, self.score)

    async def solution(self, problem: Problem, text: str, *, truncated: bool) -> Judgement:
        """Judge a solution part; `truncated` tells whether the token limit cut it."""
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
        """Judge a draft; a draft without a solution gets the reason why it has none."""
        if draft["error"] is None:
            return await self.solution(problem, draft["solution"], truncated=draft["truncated"])
        reasons: dict[str, Reason] = {"truncated": "truncated", "empty": "no_answer"}
        return Judgement(None, reasons.get(draft["error"], "failed"))


def oracles(judge: Judge, problem: Problem, weigher: DraftJudge | None = None) -> Extensions:
    """Return the oracles for one problem, and the judge that weighs drafts, if there is one."""

    async def admit(step: Step, *, correct: bool) -> list[list[Entry]]:
        judged = await asyncio.gather(*(judge.draft(problem, draft) for draft in step.drafts))
        fit = [
            draft
            for draft, judgement in zip(step.drafts, judged, strict=True)
            if judgement.correct == correct
        ]
        if not fit:
            which = "correct" if correct else "wrong"
            step.notes.append(
                f"round {step.drafts[0]['round']}: no draft is {which}, the workspace is empty"
            )
        k = min(step.config.k, len(fit))
        return [numbered(step.rng.sample(fit, k)) for _ in range(step.next_width)]

    async def gold(step: Step) -> Verdict:
        assert step.solution is not None  # a verifier runs after the finish
        judged = await judge.solution(
            problem, step.solution["text"], truncated=step.solution["truncated"]
        )
        # The reason goes into the next workspace, so it must not tell the answer.
        reason = "" if judged.correct else "the final answer is not right"
        return Verdict(verifier="gold", accepted=judged.correct, reason=reason)

    return Extensions(
        judge=weigher,
        distillers={
            "oracle_correct": Distiller(partial(admit, correct=True), no_calls),
            "oracle_wrong": Distiller(partial(admit, correct=False), no_calls),
        },
        verifiers={"gold": gold},
    )
