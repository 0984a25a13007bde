"""Decides whether a solution's final answer is the right one, and says why not.

The first of these that decides: the answer is missing; it equals the gold answer as a number or as
text (`exact.py`); math-verify, in a process that can be killed, finds them equivalent or not.

Not covered: whether the reasoning is sound, and answers in prose.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from pdr_graph.answers import exact
from pdr_graph.answers.extract import LONGEST_ANSWER, final_answer, tidy
from pdr_graph.answers.pool import WorkerPool

Mode = Literal["answer", "raw"]
"""Where the answer is: stated in a solution, or it is the whole text."""

_CACHE_SIZE = 20_000
# An answer that ran into the deadline against this many others is not tried against more of them.
_MOST_TIMEOUTS = 2


class Verdict(StrEnum):
    """What came of checking an answer; only the first two judge it."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    """The solution states none."""
    TRUNCATED = "truncated"
    """The same, of a solution that was cut by a token limit."""
    UNPARSEABLE = "unparseable"
    """It cannot be read as mathematics."""
    TIMEOUT = "timeout"
    """No verdict within the deadline or the memory limit."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The verdict on one solution."""

    verdict: Verdict
    extracted: str | None
    """The final answer; None if there is none."""
    seconds: float
    reason: str = ""
    """More on a verdict that is neither correct nor wrong, where there is more to say."""

    @property
    def correct(self) -> bool:
        """Whether the answer is right."""
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True, slots=True)
class _Judgement:
    verdict: Verdict
    reason: str = ""


class Checker:
    """Checks answers against gold answers and against one another, and remembers the verdicts."""

    def __init__(self, pool: WorkerPool | None = None) -> None:
        self.pool = pool or WorkerPool()
        self._lock = threading.Lock()  # checks may come from several event loops
        self._known: OrderedDict[tuple[str, str, bool], _Judgement] = OrderedDict()
        self._timeouts: Counter[str] = Counter()

    async def check(
        self, gold: str, solution: str, *, mode: Mode = "answer", truncated: bool = False
    ) -> CheckResult:
        """Check the final answer of a solution.

        `truncated` says that the solution was cut by a token limit.
        """
        start = time.perf_counter()
        answer = final_answer(solution) if mode == "answer" else solution.strip() or None
        if answer is None:
            missing = Verdict.TRUNCATED if truncated else Verdict.NO_ANSWER
            return CheckResult(missing, None, time.perf_counter() - start)
        judged = await self._judge(gold, answer, both_ways=False)
        return CheckResult(judged.verdict, answer, time.perf_counter() - start, judged.reason)

    async def same(self, left: str, right: str) -> bool:
        """Tell whether two answers are equivalent; two that cannot be compared are not."""
        first, second = sorted((left, right))
        return (await self._judge(first, second, both_ways=True)).verdict is Verdict.CORRECT

    def close(self) -> None:
        """End the worker processes. Not needed before exit."""
        self.pool.close()

    async def _judge(self, gold: str, answer: str, *, both_ways: bool) -> _Judgement:
        decided = exact.equal(gold, answer)
        if decided is not None:
            return _Judgement(Verdict.CORRECT if decided else Verdict.WRONG)
        if max(len(gold), len(answer)) > LONGEST_ANSWER:
            return _Judgement(Verdict.UNPARSEABLE, f"longer than {LONGEST_ANSWER} characters")
        key = (gold, answer, both_ways)
        with self._lock:
            if known := self._known.get(key):
                self._known.move_to_end(key)
                return known
            if both_ways and self._is_hopeless(gold, answer):
                return _Judgement(Verdict.TIMEOUT, "one of the answers has timed out before")
        judged = await self._ask(gold, answer, both_ways)
        with self._lock:
            self._known[key] = judged
            if judged.verdict is Verdict.TIMEOUT:
                self._timeouts.update((gold, answer))
            if len(self._known) > _CACHE_SIZE:
                self._known.popitem(last=False)
        return judged

    def _is_hopeless(self, *answers: str) -> bool:
        return any(self._timeouts[answer] >= _MOST_TIMEOUTS for answer in answers)

    async def _ask(self, gold: str, answer: str, both_ways: bool) -> _Judgement:
        limits = self.pool.limits
        reply = await asyncio.wrap_future(
            self.pool.submit(
                {
                    "gold": exact.readable(tidy(gold)),
                    "answer": exact.readable(tidy(answer)),
                    "both_ways": both_ways,
                    "seconds": limits.deadline_s,
                }
            )
        )
        if reply is None:
            return _Judgement(Verdict.TIMEOUT, f"no verdict within {limits.deadline_s:g} s")
        return _Judgement(Verdict(reply["verdict"]), reply["reason"])
