"""Rollouts that the graph draws from a model in this process."""

import asyncio
import random

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.client import Sampling
from pdr_graph.policy import Drawn
from pdr_graph.policy.chat import policy_client
from pdr_graph.policy.transformers_policy import TransformersPolicy
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.rollouts import Collector, Rollouts
from pdr_graph.train.settings import TrainSettings
from tests.policy.forward_pass import scored
from tests.policy.tiny_model import tiny_model, tiny_tokenizer

SETTINGS = TrainSettings(
    model="none",
    strategy={
        "distiller": "answers",
        "draft_prompt": "$problem",
        "improve_prompt": "$problem\n$workspace",
        "max_tokens": 40,
        "kappa": 128,
        "solution_tokens": 64,
        "temperature": 0.8,
    },
)
PLANS = [ProblemPlan("direct", 6), ProblemPlan("workspace", 6, 2), ProblemPlan("rounds", 6, 2)]


class SlowPolicy(TransformersPolicy):
    """Gets the calls of each prompt late, after a time of its own, as if a step took that long."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.waits: dict[tuple[int, ...], asyncio.Task[None]] = {}

    async def draw(self, prompt_ids, sampling: Sampling) -> Drawn:
        if prompt_ids not in self.waits:
            self.waits[prompt_ids] = asyncio.create_task(asyncio.sleep(random.uniform(0.0, 0.1)))
        await asyncio.shield(self.waits[prompt_ids])
        return await super().draw(prompt_ids, sampling)


def collected(kind: type[TransformersPolicy] = TransformersPolicy) -> Rollouts:
    """Collect the rows of three problems, each by another plan."""
    tokenizer = tiny_tokenizer()
    client = policy_client(kind(tiny_model(), tokenizer), tokenizer)
    collector = Collector(client, Judge.of_kind("math", None), SETTINGS)
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
    assert collected(SlowPolicy) == rollouts
