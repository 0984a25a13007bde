"""A tiny policy and rollouts of it, for the loss.

The reference goes token by token over unpadded rollouts and shares no code with the loss.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from pdr_graph.train.objective import TokenCounts, count_tokens, objective

VOCABULARY, WIDTH = 11, 6
EPSILON_MAX, ALPHA = 2.0, 0.1


@dataclass
class Rollout:
    """One row, as it was drawn."""

    prompt: list[int]
    tokens: list[int]
    behaviour: list[float]
    advantage: float
    correct: bool


class TinyPolicy(nn.Module):
    """A recurrent network in float64, the same for everyone who makes one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.core = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.double()

    def logprobs(self, rollout: Rollout) -> torch.Tensor:
        """Return the log-probability of each drawn token."""
        ids = torch.tensor([rollout.prompt + rollout.tokens])
        hidden, _ = self.core(self.embed(ids[:, :-1]))
        logits = self.head(hidden)[0, len(rollout.prompt) - 1 :]
        return logits.log_softmax(-1)[range(len(rollout.tokens)), rollout.tokens]


def draw_rollouts(number: int, seed: int) -> list[Rollout]:
    """Draw rollouts of 1 to 9 tokens, some far off the policy."""
    rng = random.Random(seed)
    return [
        Rollout(
            prompt=rng.choices(range(VOCABULARY), k=rng.randint(1, 4)),
            tokens=(tokens := rng.choices(range(VOCABULARY), k=rng.randint(1, 9))),
            behaviour=[rng.uniform(-5, -1) for _ in tokens],
            advantage=rng.uniform(-2, 2),
            correct=rng.random() < 0.5,
        )
        for _ in range(number)
    ]


def reference_gradient(policy: TinyPolicy, rollouts: Sequence[Rollout]) -> list[torch.Tensor]:
    """Return the gradient of the formula, one token after another."""
    num_all = sum(len(each.tokens) for each in rollouts)
    num_correct = sum(len(each.tokens) for each in rollouts if each.correct)
    loss = torch.zeros((), dtype=torch.float64)
    for each in rollouts:
        for logprob, behaviour in zip(policy.logprobs(each), each.behaviour, strict=True):
            ratio = min(torch.exp(logprob - behaviour).item(), EPSILON_MAX)
            loss = loss - ratio * each.advantage * logprob / num_all
            if each.correct:
                loss = loss - ALPHA * logprob / num_correct
    return list(torch.autograd.grad(loss, list(policy.parameters())))


def gradient_of(
    policy: TinyPolicy,
    how: Callable[[TinyPolicy, Sequence[Rollout]], list[torch.Tensor]],
    rollouts: Sequence[Rollout],
) -> list[torch.Tensor]:
    """Return a gradient without the likelihood's part."""
    assert not any(each.correct for each in rollouts)
    return how(policy, rollouts)


def padded(policy: TinyPolicy, rollouts: Sequence[Rollout]) -> tuple[torch.Tensor, ...]:
    """Return `objective`'s tensors of some rollouts, padded to the longest."""
    pad = nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(each.tokens) for each in rollouts])
    return (
        pad([policy.logprobs(each) for each in rollouts], batch_first=True),
        pad([torch.tensor(each.behaviour).double() for each in rollouts], batch_first=True),
        torch.tensor([each.advantage for each in rollouts]).double(),
        torch.tensor([each.correct for each in rollouts]),
        torch.arange(int(lengths.max())) < lengths[:, None],
    )


def step_gradient(
    policy: TinyPolicy,
    rollouts: Sequence[Rollout],
    rows_at_once: int,
    counts: TokenCounts | None = None,
) -> list[torch.Tensor]:
    """Return the gradient that accumulates over micro-batches; `counts` None are the rollouts'."""
    if counts is None:
        *_, correct, mask = padded(policy, rollouts)
        counts = count_tokens(mask, correct)
    for start in range(0, len(rollouts), rows_at_once):
        tensors = padded(policy, rollouts[start : start + rows_at_once])
        objective(*tensors, counts, epsilon_max=EPSILON_MAX, alpha=ALPHA).loss.backward()
    return [each.grad for each in policy.parameters() if each.grad is not None]


def run_rank(rank: int, folder: Path) -> None:
    """Do one rank's share of the rollouts, and save the gradient after it was summed."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rollouts = draw_rollouts(12, seed=3)
    mine = rollouts[:3] if rank == 0 else rollouts[3:]
    policy = TinyPolicy()
    *_, correct, mask = padded(policy, mine)
    here = count_tokens(mask, correct)
    totals = torch.tensor([here.all, here.correct])
    dist.all_reduce(totals)
    counts = TokenCounts(int(totals[0]), int(totals[1]))
    gradient = step_gradient(policy, mine, rows_at_once=2, counts=counts)
    for each in gradient:
        dist.all_reduce(each)
    torch.save(gradient, folder / f"gradient-{rank}.pt")
    dist.destroy_process_group()
