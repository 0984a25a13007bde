r"""The child process that computes the values of formulas, and runs math-verify.

It is started as a script, by path, so that a check costs the import of math-verify and nothing
else. It reads one JSON object a line from standard input and writes one a line to standard output:

    {"gold": "\\boxed{2x}", "answer": "$x + x$", "both_ways": false}
    {"verdict": "correct", "reason": ""}
    {"formulas": [["mul", ["name", "x"], ["const", "pi"]]], "points": {"x": [[1, 2]]}}
    {"values": [[["1.5707963267948966192313216916397514420985", "0.0", true]]]}

A request is answered by a copy of this process (`fork`), which the kernel ends after `limit_s`
seconds: one power of large integers is one call into C, which no signal handler and no thread can
interrupt. The next copy is made in milliseconds, where an import would take seconds. The parent
looks at the clock too, and kills both. Memory is limited. Not covered: network and files,
which math-verify does not touch.

Library: https://github.com/huggingface/Math-Verify, 0.9.
"""

import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

_OUT_OF_MEMORY = 70
"""Exit status of a copy that has no memory left for its request."""

# One object a line, in both directions.
_Line = dict[str, Any]
# A formula of `expression.py`: its kind, and strings, integers and other formulas.
_Formula = list[Any]

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
        # Its fallback is the text that it failed to read, often cut. Comparing two of these is no
        # use.
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


class FormulaValues:
    """Computes formulas at points, with 40 digits that are right."""

    _PRECISIONS = (60, 110, 300, 1200, 1500)
    _OF_MPMATH = "sin cos tan cot sec csc sinh cosh tanh coth ln floor ceil re im"
    # Where no sum lost more than this factor, the first result has the digits.
    _MOST_LOST = 1e8
    # All other functions have zeros, near to which no digit may be right.
    _WITHOUT_ZEROS = frozenset(["abs", "factorial", "binom", "max", "min"])
    # In bits; the decimals of the other side have no more.
    _LARGEST_EXPONENT = 10**17
    _SURELY_ZERO = 1e-40
    _AGREEMENT = 1e-42
    # In bits: 9^(9^(9^9)) has more, and no computer has the memory for them.
    _LARGEST_POWER = 1e9

    def __init__(self) -> None:
        from mpmath import mp

        self._mp = mp
        mp.dps = 60
        self._functions: dict[str, Callable[..., Any]] = {
            name: getattr(mp, name)
            for name in self._OF_MPMATH.split()
        } | {
            "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot,
            "arcsec": mp.asec, "abs": abs, "log": self._log, "factorial": self._factorial,
            "sgn": mp.sign, "binom": mp.binomial, "max": max, "min": min,
        }  # fmt: skip

    def values(self, formula: _Formula, points: dict[str, list[list[int]]]) -> list[Any] | None:
        """Return the values at the points, each None where there is none.

        None alone stands for a formula that cannot be computed at all.
        """
        names = self._names(formula)
        count = max((len(points[name]) for name in names), default=1)
        try:
            found = [
                self._value({name: points[name][index] for name in names}, formula)
                for index in range(count)
            ]
        except (NotImplementedError, KeyError, RecursionError):
            return None
        return found if any(found) else None

    def _names(self, formula: _Formula) -> set[str]:
        found: set[str] = {formula[1]} if formula[0] in ("name", "apply") else set()
        for part in formula[1:]:
            if isinstance(part, list):
                found |= self._names(part)
        return found

    def _value(self, point: dict[str, list[int]], formula: _Formula) -> list[Any] | None:
        """Compute with more and more digits until two results agree."""
        mp = self._mp
        before: tuple[Any, ...] = ()
        for precision in self._PRECISIONS:
            mp.dps = precision
            self._is_real, self._is_exact, self._largest = True, bool(point), mp.mpf(0)
            try:
                at = {name: mp.mpf(above) / below for name, (above, below) in point.items()}
                value = mp.mpc(self._compute(formula, at))
            except (ZeroDivisionError, ValueError, TypeError, OverflowError):
                return None
            if not (mp.isfinite(value.real) and mp.isfinite(value.imag)):
                return None
            if value and abs(mp.mag(value)) > self._LARGEST_EXPONENT:
                return None
            largest = max(self._largest, abs(value) if value.imag else 0)
            noise = largest * mp.mpf(10) ** (-precision * 3 // 4)
            now = (value.real, value.imag)
            if not before and self._is_exact and value.real and not value.imag:
                before = now
            parts = [self._settled(*each, noise) for each in zip(now, before, strict=False)]
            if len(parts) == 2 and None not in parts:
                texts = [mp.nstr(mp.mpf(part), 40, min_fixed=0, max_fixed=0) for part in parts]
                return [*texts, self._is_real and parts[1] == 0]
            before = now
        return None

    def _settled(self, part: Any, before: Any, noise: Any) -> Any:
        """Return a part of a number if two precisions agree on it; None if they do not."""
        if part and abs(part - before) <= abs(part) * self._AGREEMENT:
            return part
        # The remainder of a part that is 0 shrinks with the precision.
        return 0 if abs(part) <= noise < self._SURELY_ZERO else None

    def _compute(self, formula: _Formula, at: dict[str, Any]) -> Any:
        mp, kind = self._mp, formula[0]
        if kind in ("num", "dec"):
            return mp.mpf(formula[1]) / formula[2]
        if kind == "name":
            return at[formula[1]]
        if kind == "const":
            return {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1)}[formula[1]] + 0
        values = [self._compute(part, at) for part in formula[1:] if isinstance(part, list)]
        match kind:
            case "add":
                total = values[0] + values[1]
                self._largest = max(self._largest, abs(values[0]))
                self._is_exact &= bool(abs(total) * self._MOST_LOST > abs(values[0]))
                return total
            case "mul":
                return values[0] * values[1]
            case "div":
                return values[0] / values[1]
            case "neg":
                return -values[0]
            case "percent":
                return values[0] / 100
            case "deg":
                return values[0] * mp.pi / 180
            case "pow":
                return self._power(values[0], values[1], formula[2])
            case "root":
                return self._root(*values)
            case "apply":
                return at[formula[1]] * sum(
                    (value + n) ** 2 + mp.sin(n * value) for n, value in enumerate(values, 1)
                )
        self._is_exact &= all(abs(each) < self._MOST_LOST for each in values)
        if formula[1] not in self._WITHOUT_ZEROS:
            self._largest = max(self._largest, 1, *map(abs, values))
        return self._in_reals(self._functions[formula[1]](*values), *values)

    def _in_reals(self, value: Any, *arguments: Any) -> Any:
        """Notice if a function of real numbers gives a result that is not real."""
        if self._mp.im(value) != 0 and not any(self._mp.im(each) for each in arguments):
            self._is_real = False
        return value

    def _power(self, base: Any, exponent: Any, formula: _Formula) -> Any:
        mp = self._mp
        size = abs(mp.re(exponent))
        if base and size * abs(mp.log(abs(base), 2)) > self._LARGEST_POWER:
            raise OverflowError
        if mp.im(base) == 0 and mp.re(base) < 0 and formula[0] == "div" and formula[1][0] == "num":
            above, below = formula[1][1], formula[2][1]
            if formula[2][0] == "num" and below % 2 and formula[1][2] == formula[2][2] == 1:
                return self._root(base, mp.mpf(below)) ** above
        return self._in_reals(base**exponent, base, exponent)

    def _root(self, value: Any, index: Any) -> Any:
        mp = self._mp
        if mp.im(value) == 0 and mp.re(value) < 0 and mp.im(index) == 0 and index % 2 == 1:
            return -((-value) ** (1 / index))
        root = mp.sqrt(value) if index == 2 else value ** (1 / index)
        return self._in_reals(root, value)

    def _log(self, value: Any, base: Any) -> Any:
        return self._mp.log(value) / self._mp.log(base)

    def _factorial(self, value: Any) -> Any:
        if abs(value) > 1e8:
            raise OverflowError
        return self._mp.factorial(value)


class WorkerLibrary:
    """The libraries that answer requests."""

    def __init__(self) -> None:
        self.math_verify = MathVerify()
        self.formulas = FormulaValues()


def reply(library: WorkerLibrary, line: str) -> _Line:
    """Answer one request line."""
    request = json.loads(line)
    if "formulas" in request:
        values = [
            library.formulas.values(formula, request["points"]) for formula in request["formulas"]
        ]
        return {"values": values}
    try:
        verdict = library.math_verify.judge(
            request["gold"], request["answer"], both_ways=request["both_ways"]
        )
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
    while True:
        copy = os.fork()
        if copy == 0:
            _answer_requests(answer, answers)
        code = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        if code not in (-signal.SIGALRM, _OUT_OF_MEMORY):
            # Standard input has ended; or the copy was killed, and perhaps between two requests.
            os._exit(0 if code == 0 else 1)
        answers.write('{"ended": true}\n')
        answers.flush()


def _answer_requests(answer: Callable[[str], _Line], answers: Any) -> NoReturn:
    """Answer until standard input ends; the body of a copy."""
    _end_with_parent()
    for line in sys.stdin:
        began = time.monotonic()
        # Nobody handles the signal, so it ends the process inside any call.
        signal.setitimer(signal.ITIMER_REAL, json.loads(line).get("limit_s", 0))
        try:
            replied = answer(line)
            text = json.dumps({**replied, "seconds": time.monotonic() - began})
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(text + "\n")
        answers.flush()
    os._exit(0)


def _end_with_parent() -> None:
    """On Linux, let this process be killed with the one that it is a copy of."""
    if sys.platform == "linux":
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


if __name__ == "__main__":
    serve(lambda: partial(reply, WorkerLibrary()))
