r"""The child process that runs math-verify, one pair of answers at a time.

It is started as a script, by path, so that a check costs the import of math-verify and nothing
else. It reads one JSON object a line from standard input and writes one a line to standard output:

    {"gold": "\\boxed{2x}", "answer": "$x + x$", "both_ways": false}
    {"verdict": "correct", "reason": ""}

It does *not* keep time: the parent does, and kills it. One power of large integers is one call into
C, which no signal handler and no thread can interrupt. Memory is limited. Not covered: network and
files, which math-verify does not touch.

Library: https://github.com/huggingface/Math-Verify, 0.9.
"""

import json
import logging
import os
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

# One object a line, in both directions.
_Line = dict[str, Any]

# Two exact numbers that differ by more than this, relative to their size, are different.
_EXACT_TOLERANCE = 1e-12
# The same if one is written as a decimal: 1/3 and 0.333333.
_DECIMAL_TOLERANCE = 1.001e-6


class MathVerify:
    """The library, with its own timeouts off and its known false positives caught."""

    def __init__(self) -> None:
        from math_verify import LatexExtractionConfig, parse, verify
        from sympy import Basic, Float, N, UnevaluatedExpr

        logging.disable(logging.CRITICAL)
        self._parse, self._verify = parse, verify
        self._latex_only = [LatexExtractionConfig()]
        self._basic, self._float, self._evaluate = Basic, Float, N
        self._percent = UnevaluatedExpr
        # The first parse compiles regexes and builds the grammar's tables: 0.1 s, before the clock.
        self.judge("\\boxed{\\frac{x}{2}}", "$(0, 1]$", both_ways=True)

    def judge(self, gold: str, answer: str, *, both_ways: bool) -> str:
        """Say `correct`, `wrong` or `unparseable` of an answer."""
        golds, answers = self._read(gold), self._read(answer)
        if not golds or not answers:
            return "unparseable"
        equal = self._equal(golds, answers, both_ways) or (
            both_ways and self._equal(answers, golds, both_ways)
        )
        return "correct" if equal and not self._far_apart(golds[0], answers[0]) else "wrong"

    def _read(self, text: str) -> list[Any]:
        # Its fallback is a string of what it failed to read, often cut: no use to compare two.
        options: dict[str, Any] = {"fallback_mode": "no_fallback", "parsing_timeout": None}
        if text.startswith("\\boxed"):
            # By default it would look for any number within what it cannot read.
            options["extraction_config"] = self._latex_only
        read: list[Any] = self._parse(text, **options)
        return read

    def _equal(self, golds: list[Any], answers: list[Any], both_ways: bool) -> bool:
        try:
            return bool(
                self._verify(
                    golds,
                    answers,
                    timeout_seconds=None,
                    allow_set_relation_comp=both_ways,
                    raise_on_error=True,
                )
            )
        except MemoryError:
            raise
        # The library itself counts what it cannot compare as different, except a lack of memory.
        except Exception:  # noqa: BLE001
            return False

    def _far_apart(self, gold: Any, answer: Any) -> bool:
        """Tell whether two numbers differ that the library calls equal.

        It subtracts them and rounds to an absolute size, so that 1/2^99 equals 1/2^98.
        """
        if not (isinstance(gold, self._basic) and isinstance(answer, self._basic)):
            return False
        if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
            return False
        if gold.has(self._percent) or answer.has(self._percent):
            return False
        decimal = gold.has(self._float) or answer.has(self._float)
        left, right = self._evaluate(gold, 30), self._evaluate(answer, 30)
        size = max(abs(left), abs(right))
        tolerance = _DECIMAL_TOLERANCE if decimal else _EXACT_TOLERANCE
        return bool(abs(left - right) > tolerance * size)


def reply(library: MathVerify, line: str) -> _Line:
    """Answer one request line."""
    request = json.loads(line)
    try:
        verdict = library.judge(request["gold"], request["answer"], both_ways=request["both_ways"])
    except MemoryError:
        return {"verdict": "timeout", "reason": "memory limit reached"}
    # A parser may raise anything on text that it was not made for.
    except Exception as error:  # noqa: BLE001
        return {"verdict": "unparseable", "reason": type(error).__name__}
    return {"verdict": verdict, "reason": ""}


def lower_limit(which: int, value: int) -> None:
    """Set a limit of this process, no higher than the highest that it may have."""
    most = resource.getrlimit(which)[1]
    if most != resource.RLIM_INFINITY:
        value = min(value, most)
    with suppress(ValueError):  # some systems know no limit on the address space
        resource.setrlimit(which, (value, most))


def serve(start: Callable[[], Callable[[str], _Line]]) -> None:
    """Say `ready`, then answer requests until standard input ends.

    Args:
        start: Imports the library, and returns a function that answers one request line. Memory is
            limited after it.
    """
    answer = start()
    lower_limit(resource.RLIMIT_AS, int(sys.argv[1]))
    lower_limit(resource.RLIMIT_CORE, 0)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # A library that prints must not write into the conversation.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answers.write('{"ready": true}\n')
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(answer(line)) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve(lambda: partial(reply, MathVerify()))
