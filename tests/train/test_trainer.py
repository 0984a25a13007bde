"""The trainer itself, update after update, beside a reference that goes token by token."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from peft import LoraConfig, get_peft_model

from pdr_graph.errors import ConfigError
from pdr_graph.train.arguments import check_trl, training_arguments
from pdr_graph.train.trainer import OperatorTrainer
from tests.policy.tiny_model import tiny_tokenizer
from tests.train.given_rows import (
    NUM_ROWS,
    Collected,
    GivenRows,
    all_rows,
    be_a_rank,
    double_model,
    make_problems,
    make_schedule,
    reference_gradient,
    trained_gradient,
)
from tests.train.processes import exit_code, start_ranks

# peft asks transformers by a name that is to go.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

SCHEDULE = make_schedule()


def gap(found, reference) -> float:
    """Return the largest difference of two gradients that have the same parameters."""
    assert found.keys() == reference.keys()
    return max(float((found[name] - reference[name]).abs().max()) for name in reference)


def reference():
    gradient = reference_gradient(double_model(), all_rows(SCHEDULE))
    assert max(float(each.abs().max()) for each in gradient.values()) > 1e-2
    return gradient


@pytest.mark.parametrize(
    "numbers",
    [
        {"rows_at_once": 24},
        {"rows_at_once": 3},
        {"rows_at_once": 6, "gradient_checkpointing": True},
    ],
    ids=["in one batch", "accumulated", "checkpointed"],
)
def test_an_update_has_the_gradient_of_the_formula(tmp_path, numbers):
    """Padded, over eight micro-batches, activations computed again; both modes, with fillers."""
    assert gap(trained_gradient(tmp_path, SCHEDULE, GivenRows(), **numbers), reference()) < 1e-6


def test_two_ranks_have_the_gradient_of_one(tmp_path):
    """Two processes over gloo, two problems on each, with accumulation."""
    ranks = start_ranks(2, be_a_rank, tmp_path)
    assert [exit_code(rank) for rank in ranks] == [0, 0]
    for rank in range(2):
        assert gap(torch.load(tmp_path / f"gradient-{rank}.pt"), reference()) < 1e-6


def test_rows_in_are_rows_trained(tmp_path):
    """Each drawn token once, whatever fillers and padding stand beside it."""
    collect, figures = GivenRows(), []
    trainer = make_trainer(tmp_path, collect, on_update=figures.append)
    trainer.train()
    assert sum(each["tokens/trained"] for each in figures) == sum(
        len(row.call.token_ids) for row in collect.given
    )
    assert len(figures) == 4
    steps = [each for each in figures if "step" in each]
    assert [each["step"] for each in steps] == [0, 1]
    assert [each["policy_version"] for each in steps] == [0, 2]
    assert sum(each["rows/trained"] for each in steps) == len(collect.given)
    assert all(each["rows/trained"] + each["rows/fillers"] == 4 * NUM_ROWS for each in steps)
    assert steps[1]["rows/fillers"] > 0


def test_a_step_of_fillers_moves_nothing(tmp_path):
    """All calls failed: no gradient, no NaN."""

    def nothing(problems, plans, *, seed, policy_version):
        return Collected([[] for _ in problems])

    gradient = trained_gradient(tmp_path, SCHEDULE, nothing, rows_at_once=6)
    assert all(float(each.abs().max()) == 0.0 for each in gradient.values())


def test_an_adapter_is_trained_alone(tmp_path):
    """The base weights are the same to the last bit, and the adapter has moved."""
    model = double_model()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(tmp_path, GivenRows(), model=model, adapter=adapter)
    trainer.train()
    after = dict(trainer.model.named_parameters())
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

    found = trained_gradient(tmp_path, SCHEDULE, GivenRows(), model=adapted(), rows_at_once=4)
    expected = reference_gradient(adapted(), all_rows(SCHEDULE))
    assert expected
    assert gap({name: found[name] for name in expected}, expected) < 1e-6


def test_another_trl_is_refused():
    """By its version, and by what its trainer lacks; with the command that helps."""
    check_trl()
    with pytest.raises(ConfigError, match=r"for trl 1\.16, and 1\.17\.0 is .* 'trl==1\.16\.\*'"):
        check_trl("1.17.0")
    with pytest.raises(ConfigError, match="whose trainer has no _save_checkpoint and no _get_out"):
        check_trl("1.16.9", object)


def test_rows_that_cannot_be_cut_up_are_refused(tmp_path):
    """24 rows are not 5 updates, nor micro-batches of 7."""
    for numbers in ({"updates_per_step": 5}, {"rows_at_once": 7}):
        with pytest.raises(ConfigError, match="24 rows a step cannot be cut"):
            training_arguments(tmp_path, SCHEDULE, num_steps=1, cpu=True, **numbers)


def test_more_rows_than_a_plan_has_are_refused(tmp_path):
    """They would have no slot, and dropping one in silence would bias its group."""

    def generous(problems, plans, *, seed, policy_version):
        rows = GivenRows()(problems, plans, seed=seed, policy_version=policy_version).rows
        return Collected([[*each, *each] for each in rows])

    with pytest.raises(ConfigError, match="has room for 6 of each"):
        make_trainer(tmp_path, generous).train()


def make_trainer(folder, collect, *, model=None, **fields) -> OperatorTrainer:
    """Return a trainer of two steps of two updates each."""
    schedule = make_schedule(num_problems=9)
    arguments = training_arguments(
        folder, schedule, num_steps=2, updates_per_step=2, rows_at_once=4, learning_rate=1e-2,
        cpu=True,
    )  # fmt: skip
    return OperatorTrainer(
        model or double_model(),
        tiny_tokenizer(),
        make_problems(9),
        collect,
        schedule=schedule,
        arguments=arguments,
        **fields,
    )
