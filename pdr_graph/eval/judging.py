"""Decides whether a solution, or a draft, is right."""

from dataclasses import dataclass

from pdr_graph.answers import AnswerKind, MathAnswers, answer_kind, check
from pdr_graph.errors import ConfigError
from pdr_graph.eval.problems import Problem, Score
from pdr_graph.eval.schema import Reason
from pdr_graph.types import Draft


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
