"""What the trainer is told, as it comes out in a run."""

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.train.arguments import training_arguments
from pdr_graph.train.trainer import OperatorTrainer
from tests.policy.tiny_model import tiny_model, tiny_tokenizer
from tests.train.given_rows import SMALL, GivenRows, make_problems, make_schedule


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.0, 0.5, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.5]),
    ],
)
def test_the_learning_rate_rises_before_it_does_what_its_schedule_says(tmp_path, schedule, rates):
    """From 0 over the updates that are asked for, under every schedule."""
    data, told = make_schedule(), []
    trainer = OperatorTrainer(
        tiny_model(**SMALL),
        tiny_tokenizer(),
        make_problems(),
        GivenRows(),
        schedule=data,
        arguments=training_arguments(
            tmp_path,
            data,
            num_steps=1,
            updates_per_step=4,
            rows_at_once=6,
            learning_rate=1.0,
            learning_rate_schedule=schedule,
            warmup_updates=2,
            cpu=True,
        ),
        on_update=told.append,
        optimizer=None,
    )
    trainer.train()
    assert [figures["learning_rate"] for figures in told] == pytest.approx(rates)
