"""Rewards: 1 for a right answer, else -1, by the judge of an evaluation (paper section 4)."""

from pdr_graph.eval.judging import Judge, Judgement
from pdr_graph.eval.problems import Problem

RIGHT, WRONG = 1.0, -1.0


def reward_of(judgement: Judgement) -> float:
    """Return 1 for a right answer, -1 for any other.

    An answer that the checker cannot read, or not in time, earns nothing either: else a policy
    could learn to write such answers. Why is in `judgement.reason`.
    """
    return RIGHT if judgement.correct else WRONG


async def judged_reward(judge: Judge, problem: Problem, text: str, *, truncated: bool) -> float:
    """Return the reward of one solution; `truncated` says that the token limit cut it."""
    return reward_of(await judge.solution(problem, text, truncated=truncated))
