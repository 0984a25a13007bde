"""Decides whether a solution's final answer is right, and says why not.

The first step that decides counts:

1. No answer is stated.
2. It is compared with the gold answer as a number or as text (`exact.py`).
3. Both are read as what they are (`values.py`), and compared by that (`equality.py`).
4. math-verify compares what is its own: integrals, sums, limits, and whole texts.

Formulas are computed, and math-verify runs, in a process that can be killed. An answer that neither
can read is unparseable.

Not covered: whether the reasoning is sound, and answers in prose.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Literal

from pdr_graph.answers import exact
from pdr_graph.answers.equality import AnswerComparison
from pdr_graph.answers.expression import Tree, names_of
from pdr_graph.answers.extract import LONGEST_ANSWER, answer_in_text, final_answer
from pdr_graph.answers.points import NUM_POINTS, Number, UndecidedError, point
from pdr_graph.answers.pool import Message, VoteBudget, WorkerPool
from pdr_graph.answers.reader import read
from pdr_graph.answers.values import UnreadableAnswer, Value

Mode = Literal["answer", "raw"]
"""Where the answer is: `answer`, stated in a solution; `raw`, the whole text."""

_HAS_MATH = re.compile(r"\$|\\\(|\\\[|\\(?:boxed|fbox|framebox)\b")
# What math-verify reads and we do not.
_FOREIGN = re.compile(r"\\(?:int|iint|oint|sum|prod|begin|det)(?![A-Za-z])|\\\\")
_BROKEN = re.compile(r"(?<!\$)\$[ \t]*\n[^$]*\n[ \t]*\$(?!\$)|\\\([ \t]*\n[^\\]*\n[ \t]*\\\)")
# The only number of a text, after "not".
_DENIED = re.compile(r"\D*(?:\bnot|n't|\bnever)\s[^\d.,;]*[\d.,/]+\D*")
# Characters of a whole text in which math-verify looks for the expression.
_LONGEST_TEXT = 50_000
_CACHE_SIZE = 20_000
# An answer that timed out against this many others is not compared with more of them.
_MOST_TIMEOUTS = 2


class CheckVerdict(StrEnum):
    """The outcome of a check; only the first two judge the answer."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """The solution states no answer."""
    TRUNCATED = "truncated"
    """The solution states no answer, and a token limit cut it."""
    UNPARSEABLE = "unparseable"
    """The answer cannot be read as mathematics."""
    TIMEOUT = "timeout"
    """No verdict within the deadline or the memory limit."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The verdict on one solution."""

    verdict: CheckVerdict
    extracted: str | None
    """The final answer; None if there is none."""
    seconds: float
    """Time of the check, without the wait for a worker that is busy or starts."""
    reason: str = ""
    """Detail of a verdict that is neither correct nor wrong; may be empty."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.verdict is CheckVerdict.CORRECT


@dataclass(frozen=True, slots=True)
class _Judgement:
    verdict: CheckVerdict
    reason: str = ""


def _judgement(equal: bool) -> _Judgement:
    return _Judgement(CheckVerdict.CORRECT if equal else CheckVerdict.WRONG)


def _parsed(value: tuple[str, str, bool]) -> Number:
    return Decimal(value[0]), Decimal(value[1]), value[2]


class _CheckWatch:
    """Measures the work on one check, and knows what it belongs to."""

    def __init__(self, vote: VoteBudget) -> None:
        self.vote = vote
        self.begin()

    def begin(self) -> None:
        """Start the clock again."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two answers to compare."""

    gold: str
    answer: str
    in_text: bool = False
    """Whether the answer may be anywhere in a text."""
    both_ways: bool = False
    """Whether neither is gold: they are equivalent if either is correct for the other."""

    def request(self) -> Message:
        """Write the request for `worker.py`."""
        gold, answer = exact.readable(self.gold), exact.readable(self.answer)
        return {
            "gold": _boxed(gold),
            # Prose stays prose: the library looks for a number in it.
            "answer": answer if self.in_text and "\\" not in answer else _boxed(answer),
            "both_ways": self.both_ways,
        }


def _boxed(text: str) -> str:
    """Mark a bare expression as mathematics, so that math-verify sees it."""
    return text if _HAS_MATH.search(text) else f"\\boxed{{{text}}}"


def _stated(text: str) -> str:
    """Return the answer that a text states; the text itself if it is an answer alone."""
    return final_answer(text) or text


def _num_boxes(text: str) -> int:
    return text.count("\\boxed")


class Checker:
    """Checks answers against gold answers and against one another, and remembers the verdicts."""

    def __init__(self, pool: WorkerPool | None = None) -> None:
        self.pool = pool or WorkerPool()
        self._lock = threading.Lock()  # checks may come from several event loops
        self._known: OrderedDict[_Pair, _Judgement] = OrderedDict()
        self._timeouts: Counter[str] = Counter()
        self._values: dict[Tree, list[Number | None] | None] = {}
        self._hard: OrderedDict[Tree, None] = OrderedDict()
        """Formulas that took too long; they are not computed again."""

    async def check(
        self, gold: str, solution: str, *, mode: Mode = "answer", truncated: bool = False
    ) -> CheckResult:
        """Check the final answer of a solution; `truncated` if a token limit cut the solution."""
        # Checks of one problem share a place in the queue.
        watch = _CheckWatch(VoteBudget.current() or VoteBudget(key=gold))
        answer = final_answer(solution) if mode == "answer" else solution.strip() or None
        if answer is None:
            missing = CheckVerdict.TRUNCATED if truncated else CheckVerdict.NO_ANSWER
            return CheckResult(missing, None, watch.seconds)
        judged = await self._judge(_Pair(gold, answer, in_text=mode == "raw"), watch)
        return CheckResult(judged.verdict, answer, watch.seconds, judged.reason)

    async def same(self, left: str, right: str) -> bool:
        """Return whether two answers are equivalent; False where they cannot be compared."""
        first, second = sorted((left, right))
        vote = VoteBudget.current() or VoteBudget()
        judged = await self._judge(_Pair(first, second, both_ways=True), _CheckWatch(vote))
        if judged.verdict is CheckVerdict.TIMEOUT:
            vote.timeouts[judged.reason] += 1
        return judged.verdict is CheckVerdict.CORRECT

    def close(self) -> None:
        """End the worker processes. A program that exits need not call it."""
        self.pool.close()

    async def _judge(self, pair: _Pair, watch: _CheckWatch) -> _Judgement:
        decided = exact.equal(pair.gold, pair.answer)
        if decided is not None:
            return _judgement(decided)
        longest = _LONGEST_TEXT if pair.in_text else LONGEST_ANSWER
        if len(pair.gold) > _LONGEST_TEXT or len(pair.answer) > longest:
            return _Judgement(CheckVerdict.UNPARSEABLE, "too long to be an answer")
        if pair in watch.vote.cut:
            return self._cut()
        with self._lock:
            if known := self._known.get(pair):
                self._known.move_to_end(pair)
                return known
            most = max(self._num_timeouts(each, watch.vote) for each in (pair.gold, pair.answer))
            if pair.both_ways and most >= _MOST_TIMEOUTS:
                return _Judgement(CheckVerdict.TIMEOUT, "one of the answers has timed out before")
        judged = await self._decide(pair, watch)
        if judged == self._cut():
            # Another vote, with time left, may find out.
            watch.vote.cut.add(pair)
            self._blame(pair, watch.vote, watch.vote.suspects)
            return judged
        with self._lock:
            self._known[pair] = judged
            if judged.verdict is CheckVerdict.TIMEOUT and pair.both_ways:
                self._blame(pair, watch.vote, self._timeouts)
            if len(self._known) > _CACHE_SIZE:
                self._known.popitem(last=False)
            if len(self._timeouts) > _CACHE_SIZE:
                self._timeouts.clear()
        return judged

    def _num_timeouts(self, answer: str, vote: VoteBudget) -> int:
        return self._timeouts[answer] + vote.suspects[answer]

    def _blame(self, pair: _Pair, vote: VoteBudget, counted: Counter[str]) -> None:
        """Count a timeout for the answer that has more timeouts; for both if they have as many."""
        gold, answer = (self._num_timeouts(each, vote) for each in (pair.gold, pair.answer))
        counted.update([pair.gold] * (gold >= answer) + [pair.answer] * (answer >= gold))

    async def _decide(self, pair: _Pair, watch: _CheckWatch) -> _Judgement:
        if pair.in_text and _BROKEN.search(pair.answer):
            return _Judgement(CheckVerdict.UNPARSEABLE, "a formula within a line spans lines")
        if pair.in_text and _DENIED.fullmatch(pair.answer):
            return _Judgement(CheckVerdict.UNPARSEABLE, "the text says what the answer is not")
        stated = _stated(pair.answer) if pair.in_text else pair.answer
        gold, answer = read(_stated(pair.gold)), read(stated)
        whole = not pair.in_text or max(map(_num_boxes, (pair.gold, pair.answer))) < 2
        if pair.in_text and isinstance(answer, UnreadableAnswer) and not answer.is_other:
            # A part of the text may show that it is right; only the whole can be wrong.
            stated, whole = answer_in_text(pair.answer) or stated, False
            answer = read(stated)
        if stated != pair.answer and exact.equal(_stated(pair.gold), stated):
            return _judgement(True)
        if not isinstance(gold, UnreadableAnswer) and not isinstance(answer, UnreadableAnswer):
            judged = await self._compare(gold, answer, pair, watch)
            if judged is not None and (whole or judged.verdict is not CheckVerdict.WRONG):
                return judged
        else:
            for text, value in ((pair.gold, gold), (pair.answer, answer)):
                if isinstance(value, UnreadableAnswer) and (
                    value.is_other or not (pair.in_text or _FOREIGN.search(text))
                ):
                    return _Judgement(CheckVerdict.UNPARSEABLE, value.reason)
        return await self._ask(pair, watch)

    async def _compare(
        self, gold: Value, answer: Value, pair: _Pair, watch: _CheckWatch
    ) -> _Judgement | None:
        """Compare two values; None if math-verify must decide."""
        orders = [(gold, answer), (answer, gold)] if pair.both_ways else [(gold, answer)]
        undecided = False
        for first, second in orders:
            comparison = AnswerComparison(self._values)
            while True:
                try:
                    equal = comparison.equal(first, second)
                except UndecidedError:
                    undecided = True
                    break
                if not comparison.missing:
                    if equal:
                        return _judgement(True)
                    break
                late = await self._evaluate(comparison.missing, watch)
                if late is not None:
                    return late
                comparison = AnswerComparison(self._values)
        return None if undecided else _judgement(False)

    async def _evaluate(self, formulas: list[Tree], watch: _CheckWatch) -> _Judgement | None:
        """Let the worker compute formulas; return the verdict if one took too long."""
        # One at a time, so that each is computed once, and a formula that takes too long is known.
        for formula in dict.fromkeys(formulas):
            if formula in self._hard:
                return self._timeout()
            points = {
                name: [point(name, index).as_integer_ratio() for index in range(NUM_POINTS)]
                for name in sorted(names_of(formula))
            }
            request = {"formulas": [formula], "points": points}
            whole = not watch.vote.is_spent(self.pool.limits)
            reply = await self.pool.ask(request, watch.vote, on_begin=watch.begin)
            if reply is None:
                if not whole:
                    return self._cut()
                with self._lock:
                    self._hard[formula] = None
                    while len(self._hard) > _CACHE_SIZE:
                        self._hard.popitem(last=False)
                return self._timeout()
            (values,) = reply["values"]
            with self._lock:
                if len(self._values) > _CACHE_SIZE:
                    self._values.clear()
                self._values[formula] = values and [each and _parsed(each) for each in values]
        return None

    def _timeout(self) -> _Judgement:
        return _Judgement(
            CheckVerdict.TIMEOUT, f"no verdict within {self.pool.limits.deadline_s:g} s"
        )

    def _cut(self) -> _Judgement:
        return _Judgement(
            CheckVerdict.TIMEOUT,
            f"the vote has used up its {self.pool.limits.vote_s:g} s",
        )

    async def _ask(self, pair: _Pair, watch: _CheckWatch) -> _Judgement:
        whole = not watch.vote.is_spent(self.pool.limits)
        reply = await self.pool.ask(pair.request(), watch.vote, on_begin=watch.begin)
        if reply is None:
            return self._timeout() if whole else self._cut()
        return _Judgement(CheckVerdict(reply["verdict"]), reply["reason"])
