"""What counts as an answer, and when two answers are the same."""

from pdr_graph.answers.agreement import agreement, clusters
from pdr_graph.answers.checker import Checker, CheckResult, Mode, Verdict
from pdr_graph.answers.choice import ChoiceAnswers
from pdr_graph.answers.kind import AnswerKind
from pdr_graph.answers.math_answers import MathAnswers
from pdr_graph.answers.pool import Limits, WorkerPool
from pdr_graph.answers.registry import answer_kind, check
from pdr_graph.answers.text import TextAnswers

__all__ = [
    "AnswerKind",
    "CheckResult",
    "Checker",
    "ChoiceAnswers",
    "Limits",
    "MathAnswers",
    "Mode",
    "TextAnswers",
    "Verdict",
    "WorkerPool",
    "agreement",
    "answer_kind",
    "check",
    "clusters",
]
