"""The data of a step is a function of its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.errors import ConfigError
from pdr_graph.train.plan import ProblemPlan, Schedule, share_of

DIRECT, OPERATOR = ProblemPlan("direct", 8), ProblemPlan("workspace", 8, num_drafts=4)


def schedule(problems: int = 10, per_step: int = 4, seed: int = 3, **fields) -> Schedule:
    return Schedule(problems, per_step, DIRECT, OPERATOR, seed=seed, **fields)


sizes = st.tuples(st.integers(1, 30), st.integers(1, 30)).filter(lambda pair: pair[1] <= pair[0])


@given(sizes, st.integers(0, 200), st.integers(0, 5))
def test_a_step_asks_no_problem_twice(size, step, seed):
    """Else one problem's rows would be compared as two groups of one."""
    asked = schedule(*size, seed=seed).problems(step)
    assert len(asked) == len(set(asked)) == size[1]
    assert set(asked) <= set(range(size[0]))


@given(sizes, st.integers(0, 5))
def test_a_pass_asks_as_many_problems_as_fill_its_steps(size, number):
    """Each once; the rest differs from pass to pass."""
    plan = schedule(*size)
    per_pass = size[0] // size[1]
    steps = range(number * per_pass, (number + 1) * per_pass)
    asked = [problem for step in steps for problem in plan.problems(step)]
    assert len(asked) == len(set(asked)) == per_pass * size[1]


def test_each_pass_has_an_order_of_its_own():
    """And another seed has another."""
    plan = schedule(problems=40, per_step=40)
    assert plan.problems(0) != plan.problems(1)
    assert plan.problems(0) != schedule(problems=40, per_step=40, seed=4).problems(0)


def test_the_data_of_a_step_needs_no_step_before_it():
    """What a resumed run relies on; the figures are pinned, for runs begun by an older version."""
    plan = schedule(problems=12)
    assert plan.problems(7) == schedule(problems=12).problems(7)
    assert (plan.problems(0), plan.rollout_seed(7, 0)) == ([7, 0, 4, 9], 128790916)


def test_half_of_a_steps_problems_are_in_operator_mode():
    """Which half is drawn for each step."""
    plan = schedule()
    drawn = [tuple(each.kind for each in plan.plans(step)) for step in range(20)]
    assert all(kinds.count("workspace") == 2 for kinds in drawn)
    assert len(set(drawn)) > 1


def test_ranks_and_steps_draw_by_seeds_of_their_own():
    """Two ranks with one seed would draw the same rollouts of like problems."""
    plan = schedule()
    seeds = [plan.rollout_seed(step, rank) for step in range(10) for rank in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


@given(st.integers(1, 5), st.integers(1, 4))
def test_ranks_share_a_steps_problems(each, ranks):
    """All of them, none twice."""
    items = list(range(each * ranks))
    shares = [share_of(items, rank, ranks) for rank in range(ranks)]
    assert [item for share in shares for item in share] == items


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: schedule(problems=3), "a step of 4 problems cannot be made of 3"),
        (lambda: schedule(per_step=0), "a step of 0 problems"),
        (lambda: schedule(operator_fraction=1.5), "operator fraction 1.5"),
        (lambda: Schedule(9, 3, ProblemPlan("direct", 4), OPERATOR), "one number for all problems"),
        (lambda: share_of([1, 2, 3], 0, 2), "3 problems of a step cannot be shared out among 2"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(make, sentence):
    """In a sentence that names the number."""
    with pytest.raises(ConfigError, match=sentence):
        make()
