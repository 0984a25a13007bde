"""What counts as an answer, and when two answers are the same."""

from pdr_graph.answers.checker import Checker, CheckResult, CheckVerdict, Mode
from pdr_graph.answers.kinds import (
    AnswerKind,
    ChoiceAnswers,
    MathAnswers,
    TextAnswers,
    agreement,
    answer_kind,
    check,
    clusters,
)
from pdr_graph.answers.pool import Limits, VoteBudget, WorkerPool, one_vote

__all__ = [
    "AnswerKind",
    "CheckResult",
    "CheckVerdict",
    "Checker",
    "ChoiceAnswers",
    "Limits",
    "MathAnswers",
    "Mode",
    "TextAnswers",
    "VoteBudget",
    "WorkerPool",
    "agreement",
    "answer_kind",
    "check",
    "clusters",
    "one_vote",
]
