"""The guard trips when the policy is not the model, and is quiet when it is."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.train.objective import padded
from pdr_graph.train.rows import TrainRow
from pdr_graph.train.settings import DriftSettings
from pdr_graph.train.steps import Drift, DriftError, DriftGuard
from pdr_graph.train.trainer import OperatorTrainer
from tests.policy.tiny_model import tiny_model, tiny_tokenizer
from tests.train.drawn_rows import NUM_STEPS, Copying, DrawnRows, run_with
from tests.train.given_rows import SMALL, make_problems, make_settings
from tests.train.processes import exit_code, start
from tests.train.test_objective import row
from tests.train.test_trajectory import make_call


def train(folder, model, collect, *, push=None, every=1, temperature=1.0):
    """Run three steps and return the figures of their updates."""
    figures = []
    settings = make_settings(
        3,
        rollouts={"problems_per_step": 2, "rows_per_problem": 4, "num_drafts": 2},
        optimiser={"micro_batch_rows": 4, "learning_rate": 1e-2, "max_grad_norm": 1.0},
        drift={"every": every},
        strategy={"temperature": temperature},
    )
    OperatorTrainer(
        model,
        tiny_tokenizer(),
        make_problems(6),
        collect,
        settings,
        folder,
        push=push,
        on_update=lambda number, each: figures.append(each),
    ).train()
    return figures


def test_a_policy_that_is_the_model_does_not_drift(tmp_path):
    """Drawn token by token without padding, scored in padded batches by another head."""
    model = tiny_model(**SMALL)
    figures = train(tmp_path, model, DrawnRows(model))
    assert [each["policy_version"] for each in figures] == [0, 1, 2]
    assert max(each["drift/largest"] for each in figures) < 1e-5


def test_a_copy_that_gets_every_push_does_not_drift(tmp_path):
    """Pushed before the first rollouts, and after every update."""
    model = tiny_model(**SMALL)
    push = Copying(tiny_model(seed=9, **SMALL))
    figures = train(tmp_path, model, DrawnRows(push.copied), push=push)
    assert push.pushed == [0, 1, 2]
    assert max(each["drift/largest"] for each in figures) < 1e-5


def test_a_push_that_is_withheld_trips_the_guard(tmp_path):
    """At the next step, before an update is made of its rows."""
    model = tiny_model(**SMALL)
    push = Copying(copy.deepcopy(model), until=1)
    with pytest.raises(DriftError, match="the copy kept its old weights") as caught:
        train(tmp_path, model, DrawnRows(push.copied), push=push)
    assert caught.value.policy_version == 1
    assert caught.value.drift.largest > 1e-2
    assert "after 1 updates" in str(caught.value)


def test_another_temperature_trips_the_guard(tmp_path):
    """Rollouts at temperature 1, and a trainer that was told 0.7."""
    model = tiny_model(**SMALL)
    with pytest.raises(DriftError) as caught:
        train(tmp_path, model, DrawnRows(model), temperature=0.7)
    assert caught.value.policy_version == 0


def test_a_trainer_in_bfloat16_is_within_its_bound(tmp_path):
    """Beside a policy in float32: single tokens are off by more than that would allow."""
    # In a process of its own: Accelerate keeps the first precision that one has asked for.
    assert exit_code(start(run_with, tmp_path, {"bf16": True})) == 0
    figures = json.loads((tmp_path / "figures-0.json").read_text())
    drifts = [each for each in figures if "drift/mean" in each]
    assert len(drifts) == NUM_STEPS
    assert max(each["drift/largest"] for each in drifts) > 1e-3
    assert max(each["drift/mean"] for each in drifts) < 0.05


def test_steps_that_are_not_due_are_not_checked(tmp_path):
    """Every second one, with the first."""
    model = tiny_model(**SMALL)
    figures = train(tmp_path, model, DrawnRows(model), every=2)
    assert ["drift/mean" in each for each in figures] == [True, False, True]


def guard(precision: str = "fp32", **fields) -> DriftGuard:
    return DriftGuard(DriftSettings(**fields), precision)


def test_the_bound_is_the_largest_in_fp32_and_the_mean_in_bf16():
    """Single tokens of bfloat16 differ by tenths without a fault."""
    drift = Drift(largest=0.3, mean=0.01, tokens=50)
    guard("bf16").judge(drift, 1, "")
    with pytest.raises(DriftError, match=r"0\.3 \(mean 0\.01\) over 50 tokens, and 0\.001 is"):
        guard().judge(drift, 1, "")
    with pytest.raises(DriftError, match=r"a mean of 0\.05 is allowed"):
        guard("bf16").judge(Drift(0.3, 0.06, 50), 1, "")
    guard(tolerance=0.5).judge(drift, 1, "")


def test_a_value_that_is_no_number_is_no_pass():
    """On one rank among others."""
    batch = padded([row(1, 2)], pad_id=0)
    here = Drift.between(torch.tensor([[math.nan, -1.0]]), batch)
    for drifts in ([here, Drift(0.0, 0.0, 4)], [Drift(0.0, 0.0, 4), here]):
        for precision in ("fp32", "bf16"):
            with pytest.raises(DriftError):
                guard(precision).judge(Drift.over_ranks(drifts), 1, "")


def test_padding_is_not_compared():
    """Whatever stands there; without a token there is no drift."""
    # Drawn with -0.5, and one token of prompt before it.
    batch = padded([row(2, 1)], pad_id=0)
    assert Drift.between(torch.tensor([[math.nan, -1.0]]), batch) == Drift(0.5, 0.5, 1)
    assert Drift.between(torch.zeros(1, 1), padded([None], pad_id=0)) == Drift(0.0, 0.0, 0)


@given(st.lists(st.lists(st.floats(0, 5), max_size=5), min_size=1, max_size=4))
def test_the_drift_of_ranks_is_that_of_all_their_tokens(gaps):
    """Their mean weighs each token alike."""
    each = [Drift(max(g, default=0.0), sum(g) / len(g) if g else 0.0, len(g)) for g in gaps]
    every = [gap for g in gaps for gap in g]
    found = Drift.over_ranks(each)
    assert found.tokens == len(every)
    assert found.largest == max(every, default=0.0)
    assert found.mean == pytest.approx(sum(every) / len(every) if every else 0.0)


def test_rows_of_the_newest_policy_are_compared_spread_over_all():
    """Others would differ without a fault; too few are filled up, as every rank does like work."""
    fresh = [row(1, index + 1) for index in range(8)]
    old = TrainRow("p", make_call(role="direct", policy_version=3), 1.0)
    chosen = guard(rows=4).chosen([None, old, *fresh], 0)
    assert chosen == [fresh[0], fresh[2], fresh[4], fresh[6]]
    assert guard(rows=4).chosen([old], 3) == [old, None, None, None]


def test_a_guard_that_is_switched_off_is_never_due():
    """0 steps between checks."""
    assert not guard(every=0).is_due(0)
    assert [guard(every=2).is_due(step) for step in range(3)] == [True, False, True]
