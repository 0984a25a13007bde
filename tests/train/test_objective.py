"""Rows as tensors, and their loss; its gradient beside a reference is in `test_trainer.py`."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.errors import ConfigError
from pdr_graph.train.objective import Batch, load_batches, objective, padded, save_batches
from pdr_graph.train.rows import TrainRow
from pdr_graph.train.settings import ObjectiveSettings
from tests.train.test_trajectory import make_call

PAD = 99


def row(
    prompt: int, drawn: int, *, problem: str = "p", reward: float = 1.0, advantage: float = 0.0
) -> TrainRow:
    """Return a row of different tokens."""
    call = make_call(
        role="direct",
        prompt_ids=tuple(range(1, prompt + 1)),
        token_ids=tuple(range(50, 50 + drawn)),
        logprobs=tuple(-0.5 * (index + 1) for index in range(drawn)),
    )
    return TrainRow(problem, call, reward, advantage)


rows = st.builds(row, st.integers(1, 5), st.integers(0, 6), reward=st.sampled_from([1.0, -1.0]))
slots = st.lists(st.one_of(st.none(), rows), min_size=1, max_size=8)


@given(slots)
@settings(deadline=None)
def test_the_tokens_that_are_trained_are_those_that_were_drawn(drawn):
    """Each with the log-probability it was drawn with, and in its row."""
    batch = padded(drawn, pad_id=PAD)
    for index, each in enumerate(drawn):
        mask = batch.mask_B_T[index]
        tokens = batch.input_ids[index, 1:][mask].tolist()
        assert tokens == ([] if each is None else list(each.call.token_ids))
        logprobs = batch.behaviour_B_T[index][mask].tolist()
        assert logprobs == ([] if each is None else list(each.call.logprobs))
        assert batch.attention_mask[index].sum() == (each.num_tokens if each else 1)


@given(slots)
@settings(deadline=None)
def test_what_is_attended_to_is_the_row_without_its_padding(drawn):
    """From the first position on, so that a token stands where it stood when it was drawn."""
    batch = padded(drawn, pad_id=PAD)
    for index, each in enumerate(drawn):
        attended = batch.attention_mask[index].bool()
        if each is None:
            assert batch.input_ids[index].unique().tolist() == [PAD]
        else:
            expected = [*each.call.prompt_ids, *each.call.token_ids]
            assert batch.input_ids[index, : len(expected)].tolist() == expected
            assert set(batch.input_ids[index, len(expected) :].tolist()) <= {PAD}
        assert attended.tolist() == sorted(attended.tolist(), reverse=True)


def test_a_batch_counts_its_tokens_and_those_of_correct_rows():
    """Fillers count for nothing."""
    batch = padded([row(2, 3), row(1, 4, reward=-1.0), None], pad_id=PAD)
    assert batch.counts.tolist() == batch.own_counts().tolist() == [7, 3]


def test_batches_are_read_as_they_were_saved(tmp_path):
    """As a checkpoint between two updates does."""
    batches = [
        padded([row(2, 3, advantage=0.5), None], pad_id=PAD),
        padded([row(1, 1)], pad_id=PAD),
    ]
    save_batches(batches, tmp_path / "rows-0.pt")
    again = load_batches(tmp_path / "rows-0.pt")
    for one, other in zip(batches, again, strict=True):
        assert all(torch.equal(other.tensors()[k], v) for k, v in one.tensors().items())


def test_a_checkpoint_without_the_rows_of_its_step_is_a_sentence(tmp_path):
    """Whether they are missing, are something else, or are of an older version."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "rows-1.pt").write_text("something else")
    torch.save({"step": 1, "batches": [], "counts": []}, folder / "rows-2.pt")
    for name in ("rows-0.pt", "rows-1.pt", "rows-2.pt"):
        with pytest.raises(ConfigError, match=f"{name}' does not hold the rows .*checkpoint-3 to"):
            load_batches(folder / name)


ONE = ObjectiveSettings(alpha=0.0, epsilon_max=5.0)


def batch_of(logprobs, *, advantages, correct, behaviour=None, mask=None, counts=None) -> Batch:
    """Return a batch whose tokens were drawn with the given log-probabilities."""
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask
    made = Batch(
        input_ids=torch.zeros(0),
        attention_mask=torch.zeros(0),
        mask_B_T=mask,
        behaviour_B_T=logprobs.detach() if behaviour is None else behaviour,
        advantages_B=torch.tensor(advantages),
        correct_B=torch.tensor(correct),
        counts=torch.zeros(2, dtype=torch.long),
    )
    return replace(made, counts=made.own_counts() if counts is None else torch.tensor(counts))


def test_what_stands_in_the_padding_does_not_matter():
    """Not even NaN or infinity."""
    batch = padded([row(2, 3, advantage=1.0), row(1, 5, reward=-1.0, advantage=-1.0)], pad_id=PAD)
    logprobs = torch.linspace(-3.0, -1.0, batch.mask_B_T.numel()).view_as(batch.mask_B_T)
    plain = objective(logprobs, batch, ObjectiveSettings()).loss
    for odd in (math.nan, math.inf, -math.inf):
        dirty = replace(batch, behaviour_B_T=batch.behaviour_B_T.masked_fill(~batch.mask_B_T, odd))
        found = objective(
            logprobs.masked_fill(~batch.mask_B_T, odd), dirty, ObjectiveSettings()
        ).loss
        assert found.item() == plain.item()


def test_a_clipped_token_keeps_its_gradient():
    """PPO would drop it; here its weight is the bound times its advantage."""
    logprob = torch.tensor([[-1.0]], requires_grad=True)
    # The ratio is e to the 8th.
    batch = batch_of(logprob, advantages=[2.0], correct=[False], behaviour=torch.tensor([[-9.0]]))
    found = objective(logprob, batch, ONE)
    found.loss.backward()
    assert (float(logprob.grad), int(found.clipped_tokens)) == (-10.0, 1)


def test_the_likelihood_is_of_correct_rows_alone():
    """Without a difference in reward only they are learnt from, by alpha over their own tokens."""
    logprobs = torch.full((2, 3), -1.0, requires_grad=True)
    batch = batch_of(logprobs, advantages=[0.0, 0.0], correct=[True, False])
    found = objective(logprobs, batch, ObjectiveSettings(alpha=0.3))
    found.loss.backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-0.1] * 3)
    assert logprobs.grad[1].tolist() == [0.0] * 3
    assert found.loss.item() == pytest.approx((found.policy_loss + found.likelihood_loss).item())


def test_a_batch_without_a_correct_row_or_a_token_is_no_division_by_zero():
    """It has a loss of 0 and a gradient of 0."""
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    batch = batch_of(logprobs, advantages=[1.0, 1.0], correct=[False, False], mask=nothing)
    found = objective(logprobs, batch, ObjectiveSettings())
    found.loss.backward()
    assert (found.loss.item(), logprobs.grad.abs().sum().item()) == (0.0, 0.0)


def test_shapes_and_counts_that_cannot_be_are_refused():
    """A mean over the micro-batch in place of the update's is the usual mistake."""
    matrix = torch.zeros(2, 3)
    few = batch_of(matrix, advantages=[0.0, 0.0], correct=[False, True], counts=[5, 3])
    with pytest.raises(ValueError, match=r"the update has \[5, 3\] tokens, and these .* \[6, 3\]"):
        objective(matrix, few, ONE)
    with pytest.raises(ValueError, match="log-probabilities of"):
        objective(matrix[:, :2], few, ONE)
