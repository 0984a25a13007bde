"""Rollouts of both plans, as the tests on real vLLM record them."""

from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.client import ModelClient
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.rollouts import Collector, Rollouts
from pdr_graph.train.settings import TrainSettings

TEMPERATURE = 0.7
"""Not 1, at which raw log-probabilities and those of the distribution drawn from are one."""
PROBLEMS = [Problem(f"q{index}", f"What is {index} + 2?", "4") for index in range(2)]
PLANS = [ProblemPlan("direct", 3), ProblemPlan("workspace", 5, 2)]


async def collected(client: ModelClient) -> Rollouts:
    """Collect the rows of one problem by long CoT, and of one by a workspace."""
    settings = TrainSettings(
        model="none",
        strategy={
            "distiller": "answers",
            "draft_prompt": "$problem",
            "improve_prompt": "$problem\n$workspace",
            "max_tokens": 64,
            "kappa": 64,
            "solution_tokens": 32,
            "temperature": TEMPERATURE,
        },
    )
    collector = Collector(client, Judge.of_kind("math", None), settings)
    return await collector.collect(PROBLEMS, PLANS, seed=3, policy_version=0)
