"""How a problem's rows are spent, and that a step's data is a function of its number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.config import make_config
from pdr_graph.errors import ConfigError
from pdr_graph.train.plan import ProblemPlan, Schedule, config_of_run, share_of


@pytest.mark.parametrize(
    ("plan", "rows", "workspaces"),
    [
        (ProblemPlan("direct", 24), {"direct": 24}, 0),
        (ProblemPlan("rounds", 25, 4), {"draft": 20, "refine": 5}, 5),
        (ProblemPlan("rounds", 24, 4, num_distills=1), {"draft": 16, "refine": 4, "distill": 4}, 4),
        (ProblemPlan("workspace", 24, 4), {"draft": 4, "refine": 20}, 1),
    ],
)
def test_every_row_has_a_role(plan, rows, workspaces):
    """The rows of a problem are K, whatever the plan."""
    assert (plan.rows, plan.num_workspaces) == (rows, workspaces)
    assert sum(plan.rows.values()) == plan.num_rows


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (("direct", 1), "1 rows of a problem"),
        (("direct", 8, 2), "makes no drafts"),
        (("rounds", 8), "needs 1 draft or more"),
        (("rounds", 24, 4), "24 is not that times 2 or more; use 10"),
        (("rounds", 5, 4), "5 is not that times 2 or more; use 10"),
        (("workspace", 5, 4), "leaves 1 of 5 rows .* use 6 rows or more"),
        (("direct", 8, 0, 1), "distils nothing"),
        (("rounds", 8, 2, -1), "num_distills -1 is below 0"),
        (("rounds", 9, 2, 1), r"\(2 drafts, 1 of the distiller and a refinement\), .* use 8"),
        (("workspace", 8, 2, 1), "distils once for each problem, .* use plan 'rounds'"),
    ],
)
def test_numbers_that_leave_nothing_to_compare_are_refused(fields, sentence):
    """The sentence says what would do."""
    with pytest.raises(ConfigError, match=sentence):
        ProblemPlan(*fields)


@pytest.mark.parametrize(
    ("plan", "widths", "finish", "runs"),
    [
        (ProblemPlan("direct", 6), (), "refine", 6),
        (ProblemPlan("rounds", 6, 2), (2,), "refine", 2),
        (ProblemPlan("workspace", 6, 2), (2, 4), "vote", 1),
    ],
)
def test_a_run_of_a_plan_is_a_point_of_the_family_of_strategies(plan, widths, finish, runs):
    """Widths, finish and seed are the plan's, all else is what was asked."""
    config = make_config(distiller="top_k", kappa=77, widths=(9, 9))
    own = config_of_run(config, plan, seed=4)
    assert (own.widths, own.finish, own.seed, plan.num_runs) == (widths, finish, 4, runs)
    assert (own.distiller, own.kappa) == ("top_k", 77)


# ------------------------------------------------------------------------------ the schedule

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


def test_which_half_of_a_steps_problems_runs_pdr_is_drawn_for_each_step():
    """The figures are pinned, for runs begun by an older version."""
    plan = schedule()
    drawn = [tuple(each.kind for each in plan.plans(step)) for step in range(20)]
    assert all(kinds.count("workspace") == 2 for kinds in drawn)
    assert len(set(drawn)) > 1
    assert drawn[0] == ("direct", "workspace", "direct", "workspace")


@given(num=st.integers(1, 60), fraction=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_share_of_operator_problems_is_exact(num, fraction, seed):
    """Not merely expected: every step is half and half, up to one problem."""
    plans = schedule(num, num, seed, operator_fraction=fraction).plans(3)
    assert len(plans) == num
    assert abs(plans.count(OPERATOR) - fraction * num) <= 0.5 + 1e-9


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
    ],
)
def test_a_schedule_that_cannot_be_is_refused(make, sentence):
    """In a sentence that names the number."""
    with pytest.raises(ConfigError, match=sentence):
        make()
