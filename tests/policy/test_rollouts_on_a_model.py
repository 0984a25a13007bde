"""Rollouts that the graph draws from a model in this process."""

import asyncio
import random

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.config import make_config
from pdr_graph.distill import DISTILLERS, Distiller, no_calls
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.extensions import Extensions
from pdr_graph.policy.chat import policy_client
from pdr_graph.policy.transformers_policy import TransformersPolicy
from pdr_graph.step import Step
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.rollouts import Collector, Rollouts
from tests.policy.forward_pass import scored
from tests.policy.tiny_model import tiny_model, tiny_tokenizer

CONFIG = make_config(
    distiller="answers",
    draft_prompt="$problem",
    improve_prompt="$problem\n$workspace",
    max_tokens=40,
    kappa=128,
    solution_tokens=64,
    temperature=0.8,
)
PLANS = [ProblemPlan("direct", 6), ProblemPlan("workspace", 6, 2), ProblemPlan("rounds", 6, 2)]


def collected(distiller: str = "answers", **own: Distiller) -> Rollouts:
    """Collect the rows of three problems, each by another plan."""
    tokenizer = tiny_tokenizer()
    collector = Collector(
        policy_client(TransformersPolicy(tiny_model(), tokenizer), tokenizer),
        Judge.of_kind("math", None),
        CONFIG.model_copy(update={"distiller": distiller}),
        extensions=Extensions(distillers=own),
    )
    problems = [Problem(f"q{index}", f"What is {index} x 7?", "7") for index in range(3)]
    return asyncio.run(collector.collect(problems, PLANS, seed=5, policy_version=0))


@pytest.fixture(scope="module")
def rollouts() -> Rollouts:
    """What is collected where nothing is slow."""
    return collected()


def test_every_row_has_the_log_probabilities_of_a_forward_pass(rollouts):
    """Drafts, refinements and direct answers, at the run's temperature; to 1e-4."""
    model = tiny_model()
    rows = [row for found in rollouts.rows for row in found]
    assert len(rows) == 18
    for row in rows:
        expected = scored(model, row.call.prompt_ids, row.call.token_ids, 0.8)
        assert row.call.logprobs == pytest.approx(expected, abs=1e-4)


def test_the_same_seed_and_weights_collect_the_same_to_the_last_bit(rollouts):
    """However long a step of a run takes: which calls share a batch is not a matter of timing."""

    async def slow(step: Step) -> object:
        await asyncio.sleep(random.uniform(0.0, 0.1))
        return await DISTILLERS["answers"].distil(step)

    again = collected("slow", slow=Distiller(slow, no_calls))
    assert again == rollouts
