"""Laws of rows: what a call is rewarded for, how it is compared, and where it is dealt."""

import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.errors import ConfigError
from pdr_graph.train.rows import TrainRow, compared, dealt, filled, groups_of, is_flat, rows_of
from pdr_graph.train.settings import ObjectiveSettings
from tests.train.test_trajectory import make_call, make_trajectory


def row(problem: str = "p", role: str = "direct", reward: float = 1.0, tokens: int = 2) -> TrainRow:
    """Return a row of some drawn tokens after a prompt of two."""
    call = make_call(role=role, token_ids=(3,) * tokens, logprobs=(-0.5,) * tokens)
    return TrainRow(problem, call, reward)


def advantages(rows: list[TrainRow]) -> list[float]:
    """Return the advantages of some rows."""
    (found,) = compared([rows])
    return [each.advantage for each in found]


problems, roles = st.sampled_from("pq"), st.sampled_from(["draft", "refine", "direct"])
rewards = st.integers(-40, 40).map(lambda whole: whole / 8)
many_rows = st.lists(st.builds(row, problems, roles, rewards), max_size=30)


@given(many_rows)
def test_advantages_of_a_group_sum_to_nothing(rows):
    """What one row gains the others lose, on every problem and in every role."""
    for group in groups_of(compared([rows])[0]):
        assert math.isclose(sum(each.advantage for each in group), 0.0, abs_tol=1e-9)


@given(many_rows, st.integers(-8, 8))
def test_a_reward_that_all_have_changes_nothing(rows, shift):
    """Only differences count."""
    shifted = [row(each.problem_id, each.call.role, each.reward + shift) for each in rows]
    assert advantages(shifted) == pytest.approx(advantages(rows), abs=1e-9)


@given(many_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, rng):
    """A row keeps its advantage wherever it stands."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    values = advantages(rows)
    moved = advantages([rows[index] for index in order])
    assert moved == pytest.approx([values[index] for index in order], abs=1e-12)


@given(st.lists(rewards, min_size=2, max_size=12), many_rows)
def test_a_group_knows_nothing_of_the_others(own, others):
    """Other problems and roles do not move it; the formula is TRL's."""
    rows = [row("own", "draft", reward) for reward in own]
    mean, std = fmean(own), stdev(own)
    expected = [(reward - mean) / (std + 1e-4) for reward in own]
    assert advantages([*rows, *others])[: len(own)] == pytest.approx(expected, abs=1e-9)
    first, second = compared([rows, others])
    assert [each.advantage for each in first] == pytest.approx(expected, abs=1e-9)
    assert [each.reward for each in second] == [each.reward for each in others]


def test_a_flat_group_teaches_nothing():
    """0.1 thrice is flat, whatever floats make of its mean; so is a group of one."""
    rows = [row("p", "draft", 0.1)] * 3 + [row("p", "refine", 1.0)]
    rows += [row("q", "refine", 1.0), row("q", "refine", -1.0)]
    assert advantages(rows)[:4] == [0.0] * 4
    assert [(len(group), is_flat(group)) for group in groups_of(rows)] == [
        (3, True),
        (1, True),
        (2, False),
    ]


RUN = make_trajectory(
    reward=1.0,
    calls=(
        make_call(role="draft", reward=-1.0),
        make_call(role="draft", reward=1.0),
        make_call(role="distill"),
        make_call(role="refine", reward=1.0),
        make_call(role="judge"),
    ),
)


@pytest.mark.parametrize(
    ("credit", "distill", "expected"),
    [
        ("outcome", "none", [("draft", 1.0), ("draft", 1.0), ("refine", 1.0)]),
        ("own", "none", [("draft", -1.0), ("draft", 1.0), ("refine", 1.0)]),
        ("none", "none", [("refine", 1.0)]),
        ("none", "outcome", [("distill", 1.0), ("refine", 1.0)]),
    ],
)
def test_what_drafts_and_distiller_are_rewarded_for_is_a_setting(credit, distill, expected):
    """The final call always has the run's reward; a judge is never trained on."""
    rows = rows_of([RUN], ObjectiveSettings(draft_credit=credit, distill_credit=distill))
    assert [(each.call.role, each.reward) for each in rows] == expected
    assert [each.correct for each in rows] == [reward > 0 for _, reward in expected]


@pytest.mark.parametrize(("failed_calls", "rewards"), [(1, []), (0, [-1.0, -1.0])])
def test_a_run_that_a_failed_call_ended_has_no_outcome(failed_calls, rewards):
    """Its drafts are not blamed for the server; where nothing failed, the run is the policy's."""
    run = make_trajectory(
        reward=-1.0,
        stopped="no answer",
        failed_calls=failed_calls,
        calls=(make_call(role="draft", reward=1.0), make_call(role="distill")),
    )
    rows = rows_of([run], ObjectiveSettings(draft_credit="outcome", distill_credit="outcome"))
    assert [row.reward for row in rows] == rewards
    own = rows_of([run], ObjectiveSettings(draft_credit="own"))
    assert [row.reward for row in own] == [1.0]


def test_missing_rows_become_fillers_in_their_problems_place():
    """Each problem has its K slots."""
    first, second = row("p"), row("q")
    assert filled([[first], [], [second, second]], 2) == [first, None, None, None, second, second]


def test_a_problem_with_too_many_rows_is_refused():
    """The sentence names it."""
    with pytest.raises(ConfigError, match="problem 'p' has 3 rows, and a step has room for 2"):
        filled([[row("p")] * 3], 2)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_dealing_puts_every_row_into_one_micro_batch(num_updates, batches, rows_at_once, rng):
    """None twice, none left out, all of one size; an update has the rows that the order says."""
    per_update = batches * rows_at_once
    rows = [row(reward=float(index), tokens=index % 5) for index in range(num_updates * per_update)]
    order = list(range(len(rows)))
    rng.shuffle(order)
    updates = dealt(rows, order, num_updates, rows_at_once)
    assert len(updates) == num_updates
    for number, update in enumerate(updates):
        assert [len(batch) for batch in update] == [rows_at_once] * batches
        found = [each for batch in update for each in batch]
        expected = [rows[i] for i in order[number * per_update : (number + 1) * per_update]]
        assert sorted(each.reward for each in found) == sorted(each.reward for each in expected)
        lengths = [each.num_tokens for each in found]
        assert lengths == sorted(lengths, reverse=True)


def test_rows_that_cannot_be_dealt_evenly_are_refused():
    """A rest would be trained on in no update."""
    with pytest.raises(ConfigError, match="6 rows of a process cannot be split into 4 updates"):
        dealt([None] * 6, list(range(6)), 4, 1)
