"""The trainer itself, update after update, beside a reference that goes token by token."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from peft import LoraConfig, get_peft_model

from pdr_graph.errors import ConfigError
from pdr_graph.train.rollouts import Rollouts
from pdr_graph.train.rows import filled
from pdr_graph.train.trainer import OperatorTrainer
from tests.policy.tiny_model import tiny_model, tiny_tokenizer
from tests.train.given_rows import (
    ALPHA,
    EPSILON_MAX,
    NUM_PROBLEMS,
    NUM_ROWS,
    SMALL,
    GivenRows,
    be_a_rank,
    double_model,
    make_problems,
    make_settings,
    reference_advantages,
    reference_gradient,
    row_logprobs,
    rows_by_problem,
    trained_gradient,
)
from tests.train.processes import exit_code, start_ranks

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")


def gap(found, reference) -> float:
    """Return the largest difference of two gradients that have the same parameters."""
    assert found.keys() == reference.keys()
    return max(float((found[name] - reference[name]).abs().max()) for name in reference)


def all_rows():
    return [row for rows in rows_by_problem(make_settings()) for row in rows]


def reference():
    gradient = reference_gradient(double_model(), all_rows())
    assert max(float(each.abs().max()) for each in gradient.values()) > 1e-2
    return gradient


def trainer_of(folder: Path, collect, settings, *, model=None, problems=9, **fields):
    """Return a trainer."""
    return OperatorTrainer(
        model or double_model(),
        tiny_tokenizer(),
        make_problems(problems),
        collect,
        settings,
        folder,
        **fields,
    )


TWO_BY_TWO = make_settings(
    2, optimiser={"updates_per_step": 2, "micro_batch_rows": 4, "learning_rate": 1e-2}
)
"""Two steps of two updates each."""


@pytest.mark.parametrize(
    "optimiser",
    [
        {"micro_batch_rows": 24},
        {"micro_batch_rows": 3},
        {"micro_batch_rows": 6, "gradient_checkpointing": True},
    ],
    ids=["in one batch", "accumulated", "checkpointed"],
)
def test_an_update_has_the_gradient_of_the_formula(tmp_path, optimiser):
    """Padded, over eight micro-batches, activations recomputed; both plans, with fillers."""
    settings = make_settings(optimiser=optimiser)
    assert gap(trained_gradient(tmp_path, GivenRows(), settings), reference()) < 1e-6


def test_two_ranks_have_the_gradient_of_one(tmp_path):
    """Two processes over gloo, two problems on each, with accumulation."""
    ranks = start_ranks(2, be_a_rank, tmp_path)
    assert [exit_code(rank) for rank in ranks] == [0, 0]
    for rank in range(2):
        assert gap(torch.load(tmp_path / f"gradient-{rank}.pt"), reference()) < 1e-6


def test_the_reference_itself_follows_a_difference_quotient():
    """For on-policy rows without a likelihood, where the loss is a weighted log-likelihood."""
    model = double_model()
    rows = [row for row in all_rows() if row.problem_id == "q0" and not row.correct]
    rows += [row for row in all_rows() if row.problem_id == "q0" and row.correct][:1]
    with torch.no_grad():
        rows = [_on_policy(model, row) for row in rows]
    advantages = reference_advantages(rows)
    num_all = sum(len(row.call.token_ids) for row in rows)
    num_correct = len(rows[-1].call.token_ids)

    def loss() -> float:
        with torch.no_grad():
            sums = [float(row_logprobs(model, row).sum()) for row in rows]
        weighted = sum(
            advantages[row.call.rollout] * each for row, each in zip(rows, sums, strict=True)
        )
        return -weighted / num_all - ALPHA * sums[-1] / num_correct

    gradient = reference_gradient(model, rows)["model.norm.weight"]
    weight, step = model.model.norm.weight, 1e-5
    with torch.no_grad():
        weight[0] += step
        above = loss()
        weight[0] -= 2 * step
        below = loss()
    assert float(gradient[0]) == pytest.approx((above - below) / (2 * step), abs=1e-6)


def _on_policy(model, row):
    """Return a row as if the model had drawn it."""
    from dataclasses import replace

    logprobs = tuple(row_logprobs(model, row).tolist())
    return replace(row, call=row.call.model_copy(update={"logprobs": logprobs}))


def test_later_updates_compare_with_what_drew_the_rows(tmp_path):
    """Ratios are to the drawing policy, advantages of the step, and counts of the update."""
    temperature, rate, updates = 0.7, 0.3, 3
    settings = make_settings(
        2,
        optimiser={"updates_per_step": updates, "micro_batch_rows": 2},
        strategy={"temperature": temperature},
    )
    model, reference = double_model(), double_model()
    descent = torch.optim.SGD(model.parameters(), lr=rate)
    trainer_of(
        tmp_path, GivenRows(), settings, model=model, problems=NUM_PROBLEMS, optimizer=descent
    ).train()
    descent = torch.optim.SGD(reference.parameters(), lr=rate)
    for step in range(2):
        groups = rows_by_problem(settings, step)
        advantages = reference_advantages([row for rows in groups for row in rows])
        rows = filled(groups, NUM_ROWS)
        order = settings.schedule(NUM_PROBLEMS).shuffled(len(rows), step, 0)
        each = len(rows) // updates
        for start in range(0, len(rows), each):
            chosen = [rows[index] for index in order[start : start + each]]
            descent.zero_grad()
            loss_of(reference, [row for row in chosen if row], advantages, temperature).backward()
            descent.step()
    expected, first = dict(reference.named_parameters()), dict(double_model().named_parameters())
    found = {name: each.detach() for name, each in model.named_parameters()}
    moved = {name: each.detach() - first[name].detach() for name, each in expected.items()}
    assert max(float(each.abs().max()) for each in moved.values()) > 0.1
    assert gap(found, {name: each.detach() for name, each in expected.items()}) < 1e-6


def loss_of(model, rows, advantages, temperature):
    """Return −J of an update's rows, one after another, at the temperature."""
    num_all = sum(len(row.call.token_ids) for row in rows)
    num_correct = sum(len(row.call.token_ids) for row in rows if row.correct)
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logprobs = row_logprobs(model, row, temperature)
        behaviour = torch.tensor(row.call.logprobs, dtype=torch.float64)
        ratio = (logprobs.detach() - behaviour).exp().clamp(max=EPSILON_MAX)
        loss = loss - (ratio * advantages[row.call.rollout] * logprobs).sum() / num_all
        if row.correct:
            loss = loss - ALPHA * logprobs.sum() / num_correct
    return loss


def test_rows_in_are_rows_trained(tmp_path):
    """Each drawn token once, whatever fillers and padding stand beside it."""
    collect, told = GivenRows(), []
    trainer_of(
        tmp_path, collect, TWO_BY_TWO, on_update=lambda number, each: told.append((number, each))
    ).train()
    figures = [each for _, each in told]
    assert sum(each["tokens/trained"] for each in figures) == sum(
        len(row.call.token_ids) for row in collect.given
    )
    assert [number for number, _ in told] == [1, 2, 3, 4]
    steps = [each for each in figures if "policy_version" in each]
    assert [each["policy_version"] for each in steps] == [0, 2]
    assert sum(each["rows/trained"] for each in steps) == len(collect.given)
    assert all(each["rows/trained"] + each["rows/fillers"] == 4 * NUM_ROWS for each in steps)
    assert steps[1]["rows/fillers"] > 0


def test_a_step_of_fillers_moves_nothing(tmp_path):
    """All calls failed: no gradient, no NaN."""

    def nothing(problems, plans, *, seed, policy_version):
        return Rollouts([[] for _ in problems])

    gradient = trained_gradient(tmp_path, nothing, make_settings())
    assert all(float(each.abs().max()) == 0.0 for each in gradient.values())


@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_adapter_is_trained_alone(tmp_path, checkpointed):
    """The base weights are the same to the last bit, and the adapter has moved."""
    model = double_model()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    settings = make_settings(
        2, optimiser={"learning_rate": 1e-2, "gradient_checkpointing": checkpointed}
    )
    adapted = get_peft_model(model, config)
    trainer_of(tmp_path, GivenRows(), settings, model=adapted).train()
    after = dict(adapted.named_parameters())
    adapters = {name: each for name, each in after.items() if "lora_" in name}
    base = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): each
        for name, each in after.items()
        if name not in adapters
    }
    assert base.keys() == before.keys()
    assert all(torch.equal(base[name], before[name]) for name in before)
    assert all(
        float(each.detach().abs().max()) > 0.0
        for name, each in adapters.items()
        if "lora_B" in name
    )


def test_an_adapter_has_the_gradient_of_the_formula(tmp_path):
    """Where both of its factors count: the first is random, the second no longer zero."""

    def adapted():
        torch.manual_seed(1)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
        model = get_peft_model(double_model(), config, autocast_adapter_dtype=False)
        for name, each in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(each, std=0.1)
        return model

    settings = make_settings(optimiser={"micro_batch_rows": 4})
    found = trained_gradient(tmp_path, GivenRows(), settings, adapted())
    expected = reference_gradient(adapted(), all_rows())
    assert expected
    assert gap({name: found[name] for name in expected}, expected) < 1e-6


def test_more_rows_than_a_plan_has_are_refused(tmp_path):
    """They would have no slot, and dropping one in silence would bias its group."""

    def generous(problems, plans, *, seed, policy_version):
        rows = GivenRows()(problems, plans, seed=seed, policy_version=policy_version).rows
        return Rollouts([[*each, *each] for each in rows])

    with pytest.raises(ConfigError, match="has room for 6 of each"):
        trainer_of(tmp_path, generous, TWO_BY_TWO).train()


def test_other_processes_than_the_settings_say_are_refused(tmp_path):
    """The rows would be split for as many."""
    with pytest.raises(ConfigError, match="processes is 2, and 1 are running; start as many"):
        trainer_of(tmp_path, GivenRows(), make_settings(devices={"processes": 2}))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.5]),
    ],
)
def test_the_learning_rate_rises_before_it_does_what_its_schedule_says(tmp_path, schedule, rates):
    """From 0 over the updates that are asked for, under every schedule."""
    told = []
    optimiser = {
        "updates_per_step": 4,
        "learning_rate": 1.0,
        "schedule": schedule,
        "warmup_updates": 2,
    }
    trainer_of(
        tmp_path,
        GivenRows(),
        make_settings(optimiser=optimiser),
        model=tiny_model(**SMALL),
        on_update=lambda number, figures: told.append(figures["learning_rate"]),
    ).train()
    assert told == pytest.approx(rates)
