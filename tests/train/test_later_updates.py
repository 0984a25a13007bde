"""Several updates on the rows of a step, beside a reference that knows no micro-batches."""

from statistics import fmean, stdev

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.train.arguments import training_arguments
from pdr_graph.train.batch import filled
from pdr_graph.train.trainer import OperatorTrainer
from tests.policy.tiny_model import tiny_tokenizer
from tests.train.given_rows import (
    ALPHA,
    EPSILON_MAX,
    GivenRows,
    double_model,
    given_rows,
    make_problems,
    make_schedule,
)

STEPS, UPDATES, RATE, TEMPERATURE = 2, 3, 0.3, 0.7
SCHEDULE = make_schedule()


def rows_of_updates(step: int):
    """Return each update's rows, and every row's advantage in its group of the whole step."""
    problems = [make_problems()[index] for index in SCHEDULE.problems(step)]
    groups = [given_rows(*each) for each in zip(problems, SCHEDULE.plans(step), strict=True)]
    rewards: dict[tuple[str, str], list[float]] = {}
    for row in (row for group in groups for row in group):
        rewards.setdefault((row.problem_id, row.call.role), []).append(row.reward)
    rows = filled(groups, SCHEDULE.num_rows)
    order = SCHEDULE.shuffled(len(rows), step, 0)
    each = len(rows) // UPDATES
    for start in range(0, len(rows), each):
        chosen = [rows[index] for index in order[start : start + each]]
        compared = []
        for row in filter(None, chosen):
            mates = rewards[row.problem_id, row.call.role]
            spread = stdev(mates) if len(mates) > 1 else 0.0
            compared.append((row, (row.reward - fmean(mates)) / (spread + 1e-4)))
        yield compared


def loss_of(model, compared):
    """Return −J of an update's rows, one after another, at the temperature."""
    num_all = sum(len(row.call.token_ids) for row, _ in compared)
    num_correct = sum(len(row.call.token_ids) for row, _ in compared if row.correct)
    loss = torch.zeros((), dtype=torch.float64)
    for row, advantage in compared:
        prompt, tokens = row.call.prompt_ids, row.call.token_ids
        logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / TEMPERATURE).log_softmax(-1)[range(len(tokens)), list(tokens)]
        behaviour = torch.tensor(row.call.logprobs, dtype=torch.float64)
        ratio = (logprobs.detach() - behaviour).exp().clamp(max=EPSILON_MAX)
        loss = loss - (ratio * advantage * logprobs).sum() / num_all
        if row.correct:
            loss = loss - ALPHA * logprobs.sum() / num_correct
    return loss


def test_later_updates_compare_with_what_drew_the_rows(tmp_path):
    """Ratios are to the drawing policy, advantages of the step, and counts of the update."""
    model, reference = double_model(), double_model()
    OperatorTrainer(
        model,
        tiny_tokenizer(),
        make_problems(),
        GivenRows(),
        schedule=SCHEDULE,
        arguments=training_arguments(
            tmp_path,
            SCHEDULE,
            num_steps=STEPS,
            updates_per_step=UPDATES,
            rows_at_once=2,
            max_grad_norm=0.0,
            temperature=TEMPERATURE,
            cpu=True,
        ),
        alpha=ALPHA,
        epsilon_max=EPSILON_MAX,
        optimizer=torch.optim.SGD(model.parameters(), lr=RATE),
    ).train()
    descent = torch.optim.SGD(reference.parameters(), lr=RATE)
    for step in range(STEPS):
        for compared in rows_of_updates(step):
            descent.zero_grad()
            loss_of(reference, compared).backward()
            descent.step()
    expected, first = dict(reference.named_parameters()), dict(double_model().named_parameters())
    gaps = {
        name: each.detach() - expected[name].detach() for name, each in model.named_parameters()
    }
    moved = {name: each.detach() - first[name].detach() for name, each in expected.items()}
    assert max(float(each.abs().max()) for each in moved.values()) > 0.1
    assert max(float(each.abs().max()) for each in gaps.values()) < 1e-6
