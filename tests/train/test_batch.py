"""Rows as tensors: nothing is lost, nothing is trained that was not drawn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.errors import ConfigError
from pdr_graph.train.advantage import TrainRow
from pdr_graph.train.batch import Batch, TokenSample, dealt, filled, padded
from pdr_graph.train.objective import TokenCounts
from tests.train.test_trajectory import make_call

PAD = 99


def row(prompt: int, drawn: int, *, problem: str = "p", reward: float = 1.0) -> TrainRow:
    call = make_call(
        role="direct",
        prompt_ids=tuple(range(1, prompt + 1)),
        token_ids=tuple(range(50, 50 + drawn)),
        logprobs=tuple(-0.5 * (index + 1) for index in range(drawn)),
    )
    return TrainRow(problem, call, reward, correct=reward > 0)


rows = st.builds(row, st.integers(1, 5), st.integers(0, 6), reward=st.sampled_from([1.0, -1.0]))
samples = st.lists(
    st.one_of(st.just(TokenSample(None)), st.builds(TokenSample, rows, st.floats(-2, 2))),
    min_size=1,
    max_size=8,
)


@given(samples)
@settings(deadline=None)
def test_the_tokens_that_are_trained_are_those_that_were_drawn(drawn):
    """Each with the log-probability it was drawn with, and in its row."""
    batch = padded(drawn, pad_id=PAD)
    for index, sample in enumerate(drawn):
        mask = batch.mask_B_T[index]
        tokens = batch.input_ids[index, 1:][mask].tolist()
        expected = [] if sample.row is None else list(sample.row.call.token_ids)
        assert tokens == expected
        logprobs = [] if sample.row is None else list(sample.row.call.logprobs)
        assert batch.behaviour_B_T[index][mask].tolist() == logprobs
        assert batch.attention_mask[index].sum() == sample.num_tokens


@given(samples)
@settings(deadline=None)
def test_what_is_attended_to_is_the_row_without_its_padding(drawn):
    """From the first position on, so that a token stands where it stood when it was drawn."""
    batch = padded(drawn, pad_id=PAD)
    for index, sample in enumerate(drawn):
        attended = batch.attention_mask[index].bool()
        if sample.row is None:
            assert batch.input_ids[index].unique().tolist() == [PAD]
        else:
            call = sample.row.call
            expected = [*call.prompt_ids, *call.token_ids]
            assert batch.input_ids[index, : len(expected)].tolist() == expected
            assert set(batch.input_ids[index, len(expected) :].tolist()) <= {PAD}
        assert attended.tolist() == sorted(attended.tolist(), reverse=True)


def test_a_batch_counts_its_tokens_and_those_of_correct_rows():
    """Fillers count for nothing."""
    drawn = [TokenSample(row(2, 3)), TokenSample(row(1, 4, reward=-1.0)), TokenSample(None)]
    assert padded(drawn, pad_id=PAD).counts == TokenCounts(7, 3)


def test_a_batch_is_made_again_of_its_tensors():
    """As a checkpoint between two updates does."""
    batch = padded([TokenSample(row(2, 3), 0.5), TokenSample(None)], pad_id=PAD)
    again = Batch(**batch.tensors())
    assert all(torch.equal(again.tensors()[k], v) for k, v in batch.tensors().items())


def test_missing_rows_become_fillers_in_their_problems_place():
    """Each problem has its K slots."""
    first, second = row(1, 1, problem="p"), row(1, 2, problem="q")
    assert filled([[first], [], [second, second]], 2) == [first, None, None, None, second, second]


def test_a_problem_with_too_many_rows_is_refused():
    """The sentence names it."""
    with pytest.raises(ConfigError, match="problem 'p' has 3 rows, and a step has room for 2"):
        filled([[row(1, 1)] * 3], 2)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_dealing_puts_every_row_into_one_micro_batch(num_updates, batches, rows_at_once, rng):
    """None twice, none left out, all of one size; an update has the rows that the order says."""
    number = num_updates * batches * rows_at_once
    drawn = [TokenSample(row(1 + index % 3, index % 5), float(index)) for index in range(number)]
    order = list(range(number))
    rng.shuffle(order)
    cut = dealt(drawn, order, num_updates, rows_at_once)
    assert [len(each) for each in cut] == [rows_at_once] * (num_updates * batches)
    per_update = batches * rows_at_once
    for update in range(num_updates):
        found = [s for each in cut[update * batches : (update + 1) * batches] for s in each]
        expected = [drawn[i] for i in order[update * per_update : (update + 1) * per_update]]
        assert sorted(s.advantage for s in found) == sorted(s.advantage for s in expected)
        lengths = [sample.num_tokens for sample in found]
        assert lengths == sorted(lengths, reverse=True)


def test_rows_that_cannot_be_dealt_evenly_are_refused():
    """A rest would be trained on in no update."""
    with pytest.raises(ConfigError, match="6 rows of a process cannot be cut into 4 updates"):
        dealt([TokenSample(None)] * 6, list(range(6)), 4, 1)
