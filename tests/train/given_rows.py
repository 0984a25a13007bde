"""Rows made up for a trainer, and the gradient that it must have, token by token.

The reference knows no padding, batches, ranks or fillers and shares no code with what it checks.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from pdr_graph.eval.problems import Problem
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.rollouts import Rollouts
from pdr_graph.train.rows import TrainRow
from pdr_graph.train.settings import TrainSettings
from pdr_graph.train.trainer import OperatorTrainer
from pdr_graph.train.trajectory import Call
from tests.policy.tiny_model import tiny_model, tiny_tokenizer

EPSILON_MAX, ALPHA = 2.0, 0.1
NUM_PROBLEMS, NUM_ROWS = 4, 6
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


def make_settings(steps: int = 1, **tables: Any) -> TrainSettings:  # Any: fields of each table
    """Return settings of 4 problems of 6 rows a step; fields of the tables replace the usual ones.

    There is no drift guard, since made-up rows are drawn from no model, and no checkpoint.
    """
    usual: dict[str, dict[str, Any]] = {
        "rollouts": {"problems_per_step": 4, "rows_per_problem": NUM_ROWS, "num_drafts": 2},
        "objective": {"alpha": ALPHA, "epsilon_max": EPSILON_MAX},
        "optimiser": {"micro_batch_rows": 6, "max_grad_norm": 0.0, "gradient_checkpointing": False},
        "drift": {"every": 0},
    }
    fields = {
        name: {**usual.pop(name, {}), **given} if isinstance(given, dict) else given
        for name, given in tables.items()
    }
    return TrainSettings(model=Path("none"), steps=steps, save_every=1000, **fields, **usual)


def given_rows(problem: Problem, plan: ProblemPlan) -> list[TrainRow]:
    """Return rows of 1 to 9 tokens, some far off the policy, one or two fewer than the plan's."""
    rng = random.Random(problem.id)
    roles = [role for role, number in plan.rows.items() for _ in range(number)]
    rows = []
    for index, role in enumerate(roles[: len(roles) - rng.randint(0, 2)]):
        tokens = rng.choices(range(2, 90), k=rng.randint(1, 9))
        reward = rng.choice([1.0, 1.0, -1.0, 0.5])
        call = Call(
            role=role,
            round=0,
            rollout=f"{problem.id}:{index}",
            prompt_ids=tuple(rng.choices(range(2, 90), k=rng.randint(1, 12))),
            token_ids=tuple(tokens),
            logprobs=tuple(rng.uniform(-7, -2) for _ in tokens),
            text="",
            finish_reason="stop",
            seed=0,
            policy_version=0,
            reward=reward,
        )
        rows.append(TrainRow(problem.id, call, reward))
    return rows


class GivenRows:
    """A collector that answers with `given_rows`, and remembers them."""

    def __init__(self) -> None:
        self.given: list[TrainRow] = []

    def __call__(self, problems, plans, *, seed: int, policy_version: int) -> Rollouts:
        rows = [given_rows(*each) for each in zip(problems, plans, strict=True)]
        self.given += [row for group in rows for row in group]
        return Rollouts(rows)


def make_problems(number: int = NUM_PROBLEMS) -> list[Problem]:
    return [Problem(id=f"q{index}", text=f"{index}?", gold="4") for index in range(number)]


def rows_by_problem(settings: TrainSettings, step: int = 0) -> list[list[TrainRow]]:
    """Return the rows of a step over all ranks."""
    schedule = settings.schedule(NUM_PROBLEMS)
    asked = [make_problems()[index] for index in schedule.problems(step)]
    return [given_rows(*each) for each in zip(asked, schedule.plans(step), strict=True)]


def double_model(**fields):
    """Return a small model in float64, the same for everyone who makes one."""
    return tiny_model(**{**SMALL, **fields}).double()


def row_logprobs(model, row: TrainRow, temperature: float = 1.0) -> torch.Tensor:
    """Return the log-probability of each drawn token, of one row alone."""
    prompt, tokens = row.call.prompt_ids, row.call.token_ids
    logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)[range(len(tokens)), list(tokens)]


def reference_advantages(rows: Sequence[TrainRow]) -> dict[str, float]:
    """Return the advantage of each row by the name of its call."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.problem_id, row.call.role), []).append(row.reward)
    found = {}
    for row in rows:
        rewards = groups[row.problem_id, row.call.role]
        spread = stdev(rewards) if len(rewards) > 1 else 0.0
        found[row.call.rollout] = (row.reward - fmean(rewards)) / (spread + 1e-4)
    return found


def reference_gradient(model, rows: Sequence[TrainRow]) -> dict[str, torch.Tensor]:
    """Return the gradient of the formula by parameter, one token after another."""
    advantages = reference_advantages(rows)
    num_all = sum(len(row.call.token_ids) for row in rows)
    num_correct = sum(len(row.call.token_ids) for row in rows if row.correct)
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    total = {name: torch.zeros_like(each) for name, each in named.items()}
    for row in rows:
        loss = torch.zeros((), dtype=torch.float64)
        for logprob, behaviour in zip(row_logprobs(model, row), row.call.logprobs, strict=True):
            ratio = min(torch.exp(logprob - behaviour).item(), EPSILON_MAX)
            loss = loss - ratio * advantages[row.call.rollout] * logprob / num_all
            if row.correct:
                loss = loss - ALPHA * logprob / num_correct
        for name, part in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            total[name] += part
    return total


def trained_gradient(
    folder: Path, collect, settings: TrainSettings, model=None
) -> dict[str, torch.Tensor]:
    """Run one update of a real trainer by plain descent at rate 1: what moved is the gradient."""
    model = model or double_model()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    trainer = OperatorTrainer(
        model,
        tiny_tokenizer(),
        make_problems(),
        collect,
        settings,
        folder,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
    )
    trainer.train()
    return {name: before[name] - each.detach() for name, each in model.named_parameters()}


def be_a_rank(folder: Path) -> None:
    """Be one of two ranks of a trainer, as the environment says, and write the gradient."""
    settings = make_settings(optimiser={"micro_batch_rows": 4}, devices={"processes": 2})
    gradient = trained_gradient(folder, GivenRows(), settings)
    torch.save(gradient, folder / f"gradient-{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
