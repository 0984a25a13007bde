"""How a problem's rows are spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.config import make_config
from pdr_graph.errors import ConfigError
from pdr_graph.train.plan import ProblemPlan, config_of_run, mixed


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


@given(num=st.integers(0, 60), fraction=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_share_of_operator_problems_is_exact(num, fraction, seed):
    """Not merely expected: every batch is half and half, up to one problem."""
    direct, operator = ProblemPlan("direct", 10), ProblemPlan("rounds", 10, 4)
    plans = mixed(direct, operator, num, fraction, seed)
    assert len(plans) == num
    assert abs(plans.count(operator) - fraction * num) <= 0.5 + 1e-9
    assert plans == mixed(direct, operator, num, fraction, seed)


def test_plans_of_different_lengths_do_not_mix():
    """A trainer's batch is rectangular."""
    with pytest.raises(ConfigError, match="has 8 rows and plan 'rounds' 10"):
        mixed(ProblemPlan("direct", 8), ProblemPlan("rounds", 10, 4), 2, 0.5, 0)
    with pytest.raises(ConfigError, match=r"fraction 1\.5"):
        mixed(ProblemPlan("direct", 10), ProblemPlan("rounds", 10, 4), 2, 1.5, 0)
