"""A tiny model served by real vLLM, and a trainer whose rollouts the graph draws from it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from engine.cache import say
from engine.environment import vllm_environment
from engine.server import ON_CPU, VLLMServer
from pdr_graph.connect import open_client
from pdr_graph.eval.judge import Judge
from pdr_graph.eval.problems import Problem
from pdr_graph.llm.client import ModelClient
from pdr_graph.settings import load_settings
from pdr_graph.train.push import WeightPush
from pdr_graph.train.recorder import telling_tokens
from pdr_graph.train.rollouts import Collect, Collector, Rollouts
from pdr_graph.train.rows import TrainRow
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.trainer import OperatorTrainer
from tests.policy.tiny_model import tiny_tokenizer, write_tiny_model

WINDOW = 4096
"""In tokens, which are characters."""
SHAPE = {
    # vLLM's attention on CPUs takes heads of 32 and more.
    "hidden_size": 128,
    "max_position_embeddings": WINDOW,
}
PROBLEMS = [Problem(id=f"q{index}", text=f"{index} + 2 = ?", gold="4") for index in range(4)]
SETTINGS = TrainSettings(
    model="none",
    seed=1,
    save_every=1000,
    strategy={
        "distiller": "random_k",
        "k": 1,
        "max_tokens": 8,
        "kappa": 32,
        "solution_tokens": 32,
    },
    rollouts={
        "problems_per_step": 2,
        "rows_per_problem": 4,
        "num_drafts": 1,
        "operator_plan": "rounds",
    },
    optimiser={"micro_batch_rows": 4, "learning_rate": 1e-2, "gradient_checkpointing": False},
    drift={"rows": 8},
)


@contextmanager
def served(folder: Path, *options: str, tied: bool) -> Iterator[VLLMServer]:
    """Serve a tiny model while the block lasts."""
    model = write_tiny_model(folder / "model", tie_word_embeddings=tied, **SHAPE)
    server = VLLMServer(
        python=vllm_environment(),
        model=model,
        log=folder / "server.log",
        name="tiny",
        options=(
            *ON_CPU,
            *("--max-model-len", str(WINDOW), "--max-num-seqs", "16"),
            *("--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"),
            *options,
        ),
        environment={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
    )
    say("starting vLLM with a tiny model (a minute)")
    with server:
        yield server


@dataclass
class FromTheGraph:
    """Draws rollouts by running the graph on a server; even tokens earn a reward."""

    runner: asyncio.Runner
    client: ModelClient
    asked: list[str]

    def __call__(self, problems, plans, *, seed: int, policy_version: int) -> Rollouts:
        """Draw the rollouts of some problems."""
        collector = Collector(self.client, Judge.of_kind("math", None), SETTINGS)
        drawn = self.runner.run(
            collector.collect(problems, plans, seed=seed, policy_version=policy_version)
        )
        self.asked.append(self.client.name)
        rows = [[_rewarded(row) for row in group] for group in drawn.rows]
        return Rollouts(rows, drawn.trajectories)

    def use(self, name: str) -> None:
        """Have further calls ask for another model of the server."""
        self.client.model = self.client.model.model_copy(update={"model_name": name})


def _rewarded(row: TrainRow) -> TrainRow:
    reward = 1.0 if sum(row.call.token_ids) % 2 == 0 else -1.0
    return replace(row, reward=reward)


@dataclass
class Withheld:
    """Passes pushes on until a version, and keeps later ones back."""

    push_of: WeightPush
    last: int

    @property
    def cause(self) -> str:
        return self.push_of.cause

    def push(self, model, version: int) -> None:
        """Push, or do not."""
        if version <= self.last:
            self.push_of.push(model, version)


@contextmanager
def graph_on(server: VLLMServer) -> Iterator[FromTheGraph]:
    """Open the way to a server for as long as the block lasts."""
    with asyncio.Runner() as runner:
        opened = open_client(load_settings(base_url=server.base_url, model="tiny"))
        client = runner.run(opened.__aenter__())
        client.model = telling_tokens(client.model)
        try:
            yield FromTheGraph(runner, client, [])
        finally:
            runner.run(opened.__aexit__(None, None, None))


def train(
    folder: Path,
    model,
    collect: Collect,
    push: WeightPush,
    *,
    steps: int = 3,
) -> list[dict[str, float]]:
    """Train some steps with the guard on; return the figures of the updates."""
    figures: list[dict[str, float]] = []
    trainer = OperatorTrainer(
        model,
        tiny_tokenizer(),
        PROBLEMS,
        collect,
        SETTINGS.model_copy(update={"steps": steps}),
        folder,
        push=push,
        on_update=lambda update, found: figures.append(found),
    )
    trainer.train()
    return figures
