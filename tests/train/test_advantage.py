"""Laws of role-aware advantages, and what each role is rewarded for."""

import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.train.advantage import TrainRow, advantages, rows_of
from tests.train.test_trajectory import make_call, make_trajectory


def row(problem: str, role: str, reward: float) -> TrainRow:
    return TrainRow(problem, make_call(role=role), reward, correct=reward > 0)


problems, roles = st.sampled_from("pq"), st.sampled_from(["draft", "refine", "direct"])
rewards = st.integers(-40, 40).map(lambda whole: whole / 8)
many_rows = st.lists(st.builds(row, problems, roles, rewards), max_size=30)


@given(many_rows)
def test_advantages_of_a_group_sum_to_nothing(rows):
    """What one row gains the others lose, on every problem and in every role."""
    values = advantages(rows).values
    sums: dict[tuple[str, str], float] = {}
    for each, value in zip(rows, values, strict=True):
        key = each.problem_id, each.call.role
        sums[key] = sums.get(key, 0.0) + value
    assert all(math.isclose(total, 0.0, abs_tol=1e-9) for total in sums.values())


@given(many_rows, st.integers(-8, 8))
def test_a_reward_that_all_have_changes_nothing(rows, shift):
    """Only differences count."""
    shifted = [row(each.problem_id, each.call.role, each.reward + shift) for each in rows]
    assert advantages(shifted).values == pytest.approx(advantages(rows).values, abs=1e-9)


@given(many_rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, rng):
    """A row keeps its advantage wherever it stands."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    values = advantages(rows).values
    moved = advantages([rows[index] for index in order]).values
    assert moved == pytest.approx([values[index] for index in order], abs=1e-12)


@given(st.lists(rewards, min_size=2, max_size=12), many_rows)
def test_a_group_knows_nothing_of_the_others(own, others):
    """Other problems and roles do not move it; the formula is TRL's."""
    values = advantages([row("own", "draft", reward) for reward in own] + others).values
    mean, std = fmean(own), stdev(own)
    expected = [(reward - mean) / (std + 1e-4) for reward in own]
    assert values[: len(own)] == pytest.approx(expected, abs=1e-9)


def test_a_group_without_a_difference_is_reported_and_teaches_nothing():
    """0.1 thrice is flat, whatever floats make of its mean; so is a group of one."""
    rows = [row("p", "draft", 0.1)] * 3 + [row("p", "refine", 1.0)]
    rows += [row("q", "refine", 1.0), row("q", "refine", -1.0)]
    found = advantages(rows)
    assert found.values[:4] == (0.0,) * 4
    assert [(g.problem_id, g.role, g.size, g.is_flat) for g in found.groups] == [
        ("p", "draft", 3, True),
        ("p", "refine", 1, True),
        ("q", "refine", 2, False),
    ]
    assert found.flat_share == pytest.approx(2 / 3)
    assert advantages([]).flat_share == 0.0


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
    rows = rows_of([RUN], draft_credit=credit, distill_credit=distill)
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
    rows = rows_of([run], draft_credit="outcome", distill_credit="outcome")
    assert [row.reward for row in rows] == rewards
    own = rows_of([run], draft_credit="own", distill_credit="none")
    assert [row.reward for row in own] == [1.0]
