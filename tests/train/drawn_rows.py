"""Rows drawn from a model, token by token, and whole runs of a trainer on them.

A run can be told to stand still at a moment, so that a test may kill it there and nowhere else.
"""

import json
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from pdr_graph.eval.problems import Problem
from pdr_graph.train.models import last_checkpoint, staging
from pdr_graph.train.plan import ProblemPlan
from pdr_graph.train.rollouts import Rollouts
from pdr_graph.train.rows import TrainRow
from pdr_graph.train.trainer import OperatorTrainer
from pdr_graph.train.trajectory import Call
from tests.policy.tiny_model import tiny_model, tiny_tokenizer
from tests.train.given_rows import SMALL, make_problems, make_settings

NUM_PROBLEMS, NUM_STEPS, NUM_UPDATES = 10, 4, 2
ROLLOUTS = {"rows_per_problem": 4, "num_drafts": 2}


@dataclass
class DrawnRows:
    """A collector that draws rows of 1 to 6 tokens from a model; even tokens earn a reward."""

    model: torch.nn.Module
    drawn: list[dict[str, object]] = field(default_factory=list)
    """What was asked and drawn, call of the collector by call."""

    def __call__(
        self,
        problems: Sequence[Problem],
        plans: Sequence[ProblemPlan],
        *,
        seed: int,
        policy_version: int,
    ) -> Rollouts:
        """Draw the rows of some problems."""
        rows = [
            [
                self._row(problem, role, index, seed, policy_version)
                for index, role in enumerate(
                    role for role, number in plan.rows.items() for _ in range(number)
                )
            ]
            for problem, plan in zip(problems, plans, strict=True)
        ]
        self.drawn.append(
            {
                "problems": [each.id for each in problems],
                "plans": [each.kind for each in plans],
                "seed": seed,
                "policy_version": policy_version,
                "tokens": [[list(row.call.token_ids) for row in group] for group in rows],
                "logprobs": [[list(row.call.logprobs) for row in group] for group in rows],
            }
        )
        return Rollouts(rows)

    def _row(self, problem: Problem, role: str, index: int, seed: int, version: int) -> TrainRow:
        name = f"{seed}:{problem.id}:{index}"
        rng = random.Random(name)
        prompt = [10 + int(digit) for digit in problem.id[1:]] + [20] * len(role)
        tokens, logprobs = draw_tokens(self.model, prompt, rng.randint(1, 6), rng)
        reward = 1.0 if sum(tokens) % 2 == 0 else -1.0
        call = Call(
            role=role,
            round=0,
            rollout=name,
            prompt_ids=tuple(prompt),
            token_ids=tuple(tokens),
            logprobs=tuple(logprobs),
            text="",
            finish_reason="stop",
            seed=0,
            policy_version=version,
            reward=reward,
        )
        return TrainRow(problem.id, call, reward)


class Copying:
    """Pushes by copying weights into another model, unless told to withhold them."""

    cause = "the copy kept its old weights"

    def __init__(self, copied: torch.nn.Module, *, until: float = math.inf) -> None:
        self.copied, self.until = copied, until
        self.pushed: list[int] = []

    def push(self, model: torch.nn.Module, version: int) -> None:
        """Copy, or do not."""
        self.pushed.append(version)
        if version < self.until:
            self.copied.load_state_dict(model.state_dict())


def draw_tokens(
    model: torch.nn.Module, prompt: list[int], number: int, rng: random.Random
) -> tuple[list[int], list[float]]:
    """Draw tokens one by one, without a cache or padding, each with its log-probability."""
    tokens: list[int] = []
    logprobs: list[float] = []
    with torch.no_grad():
        for _ in range(number):
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].double()
            spread = logits.log_softmax(-1)
            below = spread.exp().cumsum(-1) < rng.random()
            tokens.append(min(int(below.sum()), len(spread) - 1))
            logprobs.append(float(spread[tokens[-1]]))
    return tokens, logprobs


def stand_still(folder: Path) -> None:
    """Say that the moment has come, and wait to be killed."""
    (folder / "here").touch()
    while True:
        time.sleep(60.0)


class SaveAfter(TrainerCallback):
    """Writes a checkpoint after every so many updates, which may be within a step."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step_end(self, args, state, control, **more):
        """Transformers calls an update a step."""
        control.should_save = state.global_step % self.every == 0
        return control


class StillAdamW(torch.optim.AdamW):
    """AdamW that stands still when its state is asked for amid the writing of a checkpoint."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], amid: Path | None) -> None:
        super().__init__(parameters, lr=1e-2)
        self.amid = amid

    def state_dict(self) -> dict[str, object]:
        """Return the state, unless this is the moment."""
        if self.amid is not None and self.amid.exists():
            stand_still(self.amid.parent.parent)
        return super().state_dict()


def run(folder: Path, **how: Any) -> None:  # Any: as `_train` has them
    """Train to the end from where a run of this folder was, or stand still on the way."""
    _train(folder, **how)
    # Not before the trainer is gone: torch may wait for ever for a thread of gloo's.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _train(
    folder: Path,
    *,
    save_every: int = 1,
    still_after: int | None = None,
    still_amid_save: int | None = None,
    lora: bool = False,
    bf16: bool = False,
    ranks: int = 1,
) -> None:
    """Train by options.

    The end leaves weights and what was drawn. Numbers are of updates.
    """
    folder.mkdir(exist_ok=True)
    model = tiny_model(**SMALL)
    if lora:
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    amid = None if still_amid_save is None else staging(folder) / f"checkpoint-{still_amid_save}"
    # Accelerate has a module compute in bfloat16 whoever calls it; a copy of it does not.
    copied = tiny_model(**SMALL) if bf16 else None
    collect = DrawnRows(copied or model)
    told: list[dict[str, float]] = []

    def on_update(update: int, figures: Mapping[str, float]) -> None:
        told.append(dict(figures))
        if update == still_after:
            stand_still(folder)

    settings = make_settings(
        NUM_STEPS,
        rollouts=ROLLOUTS,
        objective={"epsilon_max": 5.0},
        optimiser={
            "updates_per_step": NUM_UPDATES,
            "micro_batch_rows": 2,
            "learning_rate": 1e-2,
            "schedule": "linear",
            "warmup_updates": 2,
            "max_grad_norm": 1.0,
        },
        drift={"every": 1},
        devices={"processes": ranks, "precision": "bf16" if bf16 else "fp32"},
        seed=5,
    )
    trainer = OperatorTrainer(
        model,
        tiny_tokenizer(),
        make_problems(NUM_PROBLEMS),
        collect,
        settings,
        folder,
        push=None if copied is None else Copying(copied),
        on_update=on_update,
        optimizer=None if lora else StillAdamW(model.parameters(), amid),
    )
    trainer.add_callback(SaveAfter(save_every))
    trainer.train(last_checkpoint(folder))
    rank = trainer.accelerator.process_index
    (folder / f"drawn-{rank}.json").write_text(json.dumps(collect.drawn))
    (folder / f"figures-{rank}.json").write_text(json.dumps(told))
    torch.save(dict(trainer.model.state_dict()), folder / f"final-{rank}.pt")


def run_with(folder: Path, how: Mapping[str, Any]) -> None:
    """Run by options."""
    run(folder, **how)
