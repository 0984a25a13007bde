"""What a policy answers on the drafts of a pool, and what it spends.

A policy takes the drafts of a problem in their order, as many as it asks for. The rounds, their
early end and the vote are computed by the package's own functions, as its graph does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.studies.selection.pool import PooledDraft, PooledProblem
from pdr_graph.answers import AnswerKind
from pdr_graph.ballot import TIE_SIGNAL, add_votes, is_decided, ranked, share_ahead
from pdr_graph.types import Draft, Tally

TAIL, WHOLE = "logprob_tail", "logprob"
"""Mean log-probability of a draft's last tokens, and of all."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy did at one problem."""

    correct: float
    """1 or 0; for a vote by lot its expectation."""
    b_total: float
    """Prompt and completion tokens of all calls."""
    b_seq: float
    """The same on the longest path: of calls in parallel the longest."""
    num_drafts: int = 1


@dataclass(frozen=True, slots=True)
class RoundsPolicy:
    """Rounds of fresh drafts, and a vote over all of them."""

    widths: tuple[int, ...]
    stop: float | None = None
    """Share of the drafts, or of their weight, at which no further round is asked for."""
    judged: bool = False
    """Whether the drafts have the weights of the judge, whose reading is paid for then."""
    tie_signal: str | None = TAIL
    """By which signal a tie goes to the likeliest draft; None: to the first."""

    async def at(self, problem: PooledProblem, kind: AnswerKind) -> Outcome:
        """Return what the policy does at a problem, which needs as many drafts as `widths`."""
        left, tally = list(problem.drafts), None
        b_total = b_seq = 0.0
        used: list[PooledDraft] = []
        for number, width in enumerate(self.widths, start=1):
            taken, left = left[:width], left[width:]
            used += taken
            costs = [self._cost(problem, each) for each in taken]
            b_total, b_seq = b_total + sum(costs), b_seq + max(costs)
            drafts = [self._draft(each, number, index) for index, each in enumerate(taken)]
            tally = await add_votes(kind, tally, drafts)
            if self._is_over(tally, more_drafts=sum(self.widths[number:])):
                break
        assert tally is not None  # a policy has a round
        return Outcome(_is_right(tally, used), b_total, b_seq, len(used))

    def _cost(self, problem: PooledProblem, draft: PooledDraft) -> int:
        read = problem.read_tokens if self.judged else 0
        return problem.prompt_tokens + draft.tokens + read

    def _draft(self, pooled: PooledDraft, number: int, index: int) -> Draft:
        draft = pooled.as_draft(number, index, judged=self.judged)
        signal = pooled.signals.get(self.tie_signal) if self.tie_signal else None
        draft["signals"] = {} if signal is None else {TIE_SIGNAL: signal}
        return draft

    def _is_over(self, tally: Tally, *, more_drafts: int) -> bool:
        if self.stop is None:
            return False
        answer, share = share_ahead(tally)
        return answer is not None and (share >= self.stop or is_decided(tally, more_drafts))


def _is_right(tally: Tally, used: Sequence[PooledDraft]) -> float:
    """Tell whether the answer that is ahead is right, by a draft that gave it."""
    if not tally["votes"]:
        return 0.0
    first = ranked(tally)[0][0]["answer"]
    return float(next(each.correct for each in used if each.answer == first))


def oracle(problem: PooledProblem) -> float:
    """Return 1 where any draft is right: what the best choice would reach."""
    return float(any(each.correct for each in problem.drafts))


def long_cot(problem: PooledProblem) -> Outcome:
    """Return the single attempt."""
    spent = float(problem.prompt_tokens + problem.long_cot.tokens)
    return Outcome(float(problem.long_cot.correct), spent, spent)
